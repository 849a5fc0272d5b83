/*
 * The doorbell: one page of MMIO at which the guest meets its host. A vCPU that
 * reads one of the park registers stands still inside the load until the host
 * completes it. Shared with native/; docs/devices.md explains it.
 *
 * The host names the page on the kernel's command line (forklet.doorbell=);
 * our kernel offers it to programs as the first page of /dev/forklet.
 */
#pragma once

/* Offsets of the 32-bit registers. */
enum fk_doorbell {
  FK_DOORBELL_EVENT = 0x00,        /* write: how the machine ends; the kernel's */
  FK_DOORBELL_PARK_AGENT = 0x08,   /* read: the agent stands still; always 1 */
  FK_DOORBELL_PARK_PROGRAM = 0x10, /* read: a program stands still; always 1 */
  FK_DOORBELL_RESEEDED = 0x18,     /* write: low half of the generation for which the
                                      kernel's random pool has been reseeded */
};

/* Offsets in /dev/forklet, in pages. */
enum fk_device_page {
  FK_PAGE_DOORBELL = 0,
  FK_PAGE_MAILBOX = 1,
  FK_PAGE_EXCHANGE = 2,
};
