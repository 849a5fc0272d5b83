// A parked Lua interpreter. A request is Lua source: a chunk, or an expression.
// It runs with global variables of its own; the answer is what it returns, as
// text, separated by tabs. A chunk that fails answers with its error.
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <malloc.h>
#include <stdlib.h>

#include "../forklet-park.h"

enum {
  // What requests may allocate without asking the kernel for memory.
  HEAP_BYTES = 2 * 1024 * 1024,
  // The largest that glibc takes: everything comes from that heap.
  MMAP_THRESHOLD = 32 * 1024 * 1024,
  TRIM_THRESHOLD = 1 << 30,
  WARM_ROUNDS = 3,
};

struct source {
  const char* text;
  size_t bytes;
};

// Pushes the source as a function: as an expression, if it is one.
static void load(lua_State* lua, const struct source* source) {
  lua_pushliteral(lua, "return ");
  lua_pushlstring(lua, source->text, source->bytes);
  lua_concat(lua, 2);
  size_t bytes;
  const char* expression = lua_tolstring(lua, -1, &bytes);
  // Text only: Lua does not check bytecode, which can do anything.
  if (luaL_loadbufferx(lua, expression, bytes, "=request", "t") == LUA_OK) return;
  if (luaL_loadbufferx(lua, source->text, source->bytes, "=request", "t") != LUA_OK) lua_error(lua);
}

// Gives the function on the stack globals of its own, behind which are those of
// the interpreter.
static void give_globals(lua_State* lua) {
  lua_newtable(lua);
  lua_createtable(lua, 0, 1);
  lua_pushglobaltable(lua);
  lua_setfield(lua, -2, "__index");
  lua_setmetatable(lua, -2);
  lua_setupvalue(lua, -2, 1);
}

// Its arguments as one text.
static int to_text(lua_State* lua) {
  const int count = lua_gettop(lua);
  luaL_Buffer text;
  luaL_buffinit(lua, &text);
  for (int i = 1; i <= count; i++) {
    if (i > 1) luaL_addchar(&text, '\t');
    luaL_tolstring(lua, i, NULL);
    luaL_addvalue(&text);
  }
  luaL_pushresult(&text);
  return 1;
}

static int evaluate(lua_State* lua) {
  const struct source* source = lua_touserdata(lua, 1);
  lua_pushcfunction(lua, to_text);
  load(lua, source);
  lua_replace(lua, 1);
  lua_settop(lua, 2);
  lua_insert(lua, 1);
  give_globals(lua);
  lua_call(lua, 0, LUA_MULTRET);
  lua_call(lua, lua_gettop(lua) - 1, 1);
  return 1;
}

// Leaves a text on the stack: the results, or the error.
static int run(lua_State* lua, const struct source* source) {
  lua_settop(lua, 0);
  lua_pushcfunction(lua, evaluate);
  lua_pushlightuserdata(lua, (void*)source);
  if (lua_pcall(lua, 1, 1, 0) == LUA_OK) return 0;
  // An error can be any value, and turning that into a text can fail again.
  lua_pushcfunction(lua, to_text);
  lua_insert(lua, 1);
  if (lua_pcall(lua, 1, 1, 0) != LUA_OK && !lua_isstring(lua, -1)) {
    lua_pushliteral(lua, "the error is not a text");
  }
  return 1;
}

// Everything but `package`, which would load what is not there.
static void open_libraries(lua_State* lua) {
  static const luaL_Reg libraries[] = {
      {LUA_GNAME, luaopen_base},       {LUA_COLIBNAME, luaopen_coroutine},
      {LUA_TABLIBNAME, luaopen_table}, {LUA_IOLIBNAME, luaopen_io},
      {LUA_OSLIBNAME, luaopen_os},     {LUA_STRLIBNAME, luaopen_string},
      {LUA_MATHLIBNAME, luaopen_math}, {LUA_UTF8LIBNAME, luaopen_utf8},
      {LUA_DBLIBNAME, luaopen_debug},
  };
  for (size_t i = 0; i < sizeof(libraries) / sizeof(libraries[0]); i++) {
    luaL_requiref(lua, libraries[i].name, libraries[i].func, 1);
  }
}

// Runs what requests usually use, so that its pages are there and its caches
// filled; and keeps memory for the requests to come.
static void warm_up(lua_State* lua) {
  static const char text[] =
      "local t = {} for i = 1, 2000 do t[i] = ('%d %s'):format(i, ('x'):rep(3)) end "
      "table.sort(t) local ok, e = pcall(error, 'x') "
      "local f = load('return math.sqrt(...)') local c = coroutine.wrap(coroutine.yield) c(1) "
      "return #table.concat(t), ('a,b'):gsub(',', ';'), f(2), e";
  const struct source source = {text, sizeof(text) - 1};
  mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD);
  mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD);
  for (int i = 0; i < WARM_ROUNDS; i++) {
    if (run(lua, &source) != 0) abort();
  }
  lua_settop(lua, 0);
  lua_gc(lua, LUA_GCCOLLECT);
  void* heap = malloc(HEAP_BYTES);
  if (heap) memset(heap, 1, HEAP_BYTES);
  free(heap);
}

int main(void) {
  struct forklet forklet;
  lua_State* lua = luaL_newstate();
  if (!lua || forklet_open(&forklet) != 0) return 1;
  open_libraries(lua);
  warm_up(lua);
  for (;;) {
    const long bytes = forklet_park(&forklet);
    if (bytes < 0) return 1;
    const struct source source = {(const char*)forklet_data(&forklet), (size_t)bytes};
    const int failed = run(lua, &source);
    size_t length;
    const char* text = lua_tolstring(lua, -1, &length);
    if (failed) {
      forklet_fail(&forklet, text, length);
    } else if (length > FORKLET_DATA_BYTES) {
      static const char message[] = "the result is too long";
      forklet_fail(&forklet, message, sizeof(message) - 1);
    } else {
      memcpy(forklet_data(&forklet), text, length);
      forklet_answer(&forklet, length);
    }
  }
}
