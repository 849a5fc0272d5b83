{
  'variables': {
    # CI sets it: node-gyp rebuild -- -Dwerror=1
    'werror%': 0,
  },
  'targets': [
    {
      'target_name': 'forklet',
      'sources': ["<!@(sed '/^#/d' native/sources.txt)"],
      'include_dirs': [
        'native',
        "<!(node -p \"require('node-addon-api').include_dir\")",
      ],
      'defines': [
        'NAPI_VERSION=9',
        'NAPI_DISABLE_CPP_EXCEPTIONS',
        'NODE_ADDON_API_DISABLE_DEPRECATED',
        # In an environment that is going down no call succeeds, nor does
        # throwing that it failed: without this, that ends the process.
        'NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS',
        '_GNU_SOURCE',
      ],
      # Node's own -fno-exceptions and -fno-rtti stay in force.
      # -Wrestrict of GCC 12 is wrong about joined strings (GCC bug 105651).
      'cflags': [
        '-Wall',
        '-Wextra',
        '-Wno-restrict',
        '-fvisibility=hidden',
        '-fstack-protector-strong',
      ],
      'cflags_c': ['-std=gnu11'],
      'cflags_cc!': ['-std=gnu++17'],
      'cflags_cc': ['-std=gnu++20', '-fvisibility-inlines-hidden', '-pthread'],
      'ldflags': [
        # Threads of ours may still run when Node dlcloses an addon that only a worker loaded.
        '-Wl,-z,nodelete',
        '-Wl,-z,relro,-z,now',
        '-Wl,--gc-sections',
        # Distributions with an older C++ library than the builder's are welcome. Nothing of C++
        # crosses the boundary to Node, so a copy of our own can disagree with nobody's.
        '-static-libstdc++',
        # Nothing but Node-API's entry points is visible, the linked decompressors included: they
        # can neither clash with the ones inside node nor be replaced by them.
        '-Wl,--version-script=<(module_root_dir)/native/exports.map',
        '-Wl,--no-undefined-version',
      ],
      'libraries': [
        '-pthread',
        # Kernel payloads are unpacked with the static libraries, so that the published binary
        # needs none of them at run time.
        '-l:libz.a',
        '-l:liblzma.a',
        '-l:liblz4.a',
        '-l:libzstd.a',
      ],
      'conditions': [
        ['werror==1', {'cflags': ['-Werror']}],
      ],
    },
  ],
}
