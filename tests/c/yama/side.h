/*
 * The sides of a cell of the Yama test: processes with one agent each, which
 * load each other's metadata and move bytes.  The guest (guest.c) starts them
 * with the rights of the cell and gives them orders, one message each over a
 * socket, and each order is answered with one message.
 */
#ifndef YAMA_SIDE_H
#define YAMA_SIDE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#define SIDE_FD 3 /* the socket, in the process of a side */
#define SIDE_TEXT 512

/* Half of each region is read by peers, the other half is written by them.
 * Too long to be copied at once: a thread copies it. */
#define SIDE_HALF (512u << 10)
#define SIDE_REGIONS 2 /* private memory; shared memory, which peers map */

/* What a peer needs to know. */
typedef struct offer {
    char name[16];
    pid_t pid;
    uint64_t addr[SIDE_REGIONS];
    size_t metadata_len;
    unsigned char metadata[4096];
} offer_t;

typedef enum order_kind {
    ORDER_KNOW,     /* load the metadata of `peer` (again) */
    ORDER_LOAD,     /* the same, then as ORDER_MOVE */
    ORDER_MOVE,     /* READ from and WRITE to all regions of `peer`, and check
                       what was read */
    ORDER_CHECK,    /* check what `peer` has written here */
    ORDER_PEEK,     /* one byte of `peer`, by process_vm_readv() alone */
    ORDER_NAME,     /* make `peer` the only tracer of this process */
    ORDER_WITHDRAW, /* allow nobody to trace this process */
} order_kind_t;

typedef struct order {
    order_kind_t kind;
    offer_t peer;
} order_t;

typedef struct report {
    bool done; /* and all bytes are right */
    char failure[SIDE_TEXT];
    char path[16];            /* describe(peer): the main transport */
    char reason[SIDE_TEXT];   /* why SHM is not used; "" if it is */
    char unmapped[SIDE_TEXT]; /* why the shared region is not mapped */
} report_t;

/* Run a side until the guest closes the socket.  Returns the exit status. */
int side_main(const char *name);

#endif
