/*
 * Turns the name of a host into a connected socket: looks the name up, then
 * connects to the first of its addresses that answers.  Nothing here waits.
 * One thread at a time.
 *
 * Attempts start one after the other: a quarter of a second apart, or as soon
 * as one has failed, alternating between the address families (RFC 8305).  The
 * first connection that succeeds is kept; the other attempts are closed.
 */
#ifndef VNXI_NET_CONNECT_H
#define VNXI_NET_CONNECT_H

#include "base/error.h"
#include "net/resolve.h"

#define VNXI_DIAL_TEXT 240

typedef struct vnxi_dial {
    const char *host; /* borrowed */
    int port;
    uint64_t deadline;
    const char *only_loopback; /* NULL, or why other addresses are refused; the
                                  caller may set it after vnxi_dial_init() */
    vnxi_lookup_t *lookup;     /* owned; NULL: none has begun, or it is over */
    bool is_connecting; /* else it is resolving, and nothing up to `last` is
                           valid, except `next` */
    vnxi_addresses_t addresses;   /* in the order of the attempts */
    int fds[VNXI_ADDRESSES_MAX];  /* owned; -1: not begun, or failed */
    int errs[VNXI_ADDRESSES_MAX]; /* errno of the failed ones, else 0 */
    size_t begun, open;
    int epoll_fd;      /* owned; has all attempts, once there are two */
    uint64_t interval; /* ns between attempts */
    uint64_t next;     /* when the next attempt starts; UINT64_MAX: none.
                          While too many look-ups run, when to ask again */
    size_t last;       /* index of the one that has connected */
    const char *whom;  /* for records: the host, then `address` */
    char address[VNXI_ADDRESS_TEXT]; /* that one, or the only one */
    const char *reason; /* after an error, or why no look-up has begun; static,
                           or `text` */
    char text[VNXI_DIAL_TEXT];
} vnxi_dial_t;

/* Prepare; nothing begins yet.  `deadline` is a time of vnxi_clock_ns(); it
 * only sets the pace of the attempts. */
void vnxi_dial_init(vnxi_dial_t *dial, const char *host, int port,
                    uint64_t deadline);

/* Connect to these addresses, instead of looking the host up. */
void vnxi_dial_addresses(vnxi_dial_t *dial, const vnxi_addresses_t *addresses,
                         uint64_t now);

/* Stop the look-up, and close all attempts.  May be called again, and for an
 * object that is all zeros. */
void vnxi_dial_fini(vnxi_dial_t *dial);

/* Do what can be done now.  VNX_OK: *fd_p, owned, is connected to
 * addresses.list[last].  VNX_IN_PROG: wait for what vnxi_dial_wait() returns,
 * then call again.  Any other status is an error of vnxi_lookup_begin(),
 * VNX_ERR_NOT_ALLOWED because of only_loopback, or VNX_ERR_BACKEND because
 * every attempt has failed; `reason` has the cause, of all attempts. */
vnx_status_t vnxi_dial_step(vnxi_dial_t *dial, uint64_t now, int *fd_p);

/* Return why the connection does not exist when the caller gives up now:
 * "timed out", and what each attempt has come to, or why the host has no
 * address yet.  In `text`. */
const char *vnxi_dial_timed_out(vnxi_dial_t *dial);

/* Return the descriptor (-1: none), the poll events and the time to wait for
 * before the next step. */
void vnxi_dial_wait(const vnxi_dial_t *dial, int *fd_p, short *events_p,
                    uint64_t *wake_p);

#endif
