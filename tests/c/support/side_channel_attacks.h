/*
 * Attacks that every transport must withstand.  Each function is a complete
 * test and creates its own channels.
 */
#ifndef VNX_SIDE_CHANNEL_ATTACKS_H
#define VNX_SIDE_CHANNEL_ATTACKS_H

#include "side_channel_peer.h"

#define BLOB "the metadata of a well-behaved exchange"
#define BLOB_LEN (sizeof BLOB - 1)

/* A transport, as its attackers know it. */
typedef struct attacked {
    channel_make_t *make;
    const char *request; /* for the metadata, in bytes */
    size_t request_len;
} attacked_t;

/* Exchanges that must succeed during an attack on the listener. */
void expect_service(vnx_side_channel_t *channel, int port);

/* -- By clients ----------------------------------------------------------- */

/* `most` connections that send `len` bytes and fall silent: all are held, and
 * others are served. */
void expect_crowd_held(const attacked_t *attacked, size_t most,
                       const void *data, size_t len);

/* More than the table has room for: the oldest go, and others are served. */
void expect_crowd_gives_way(const attacked_t *attacked);

/* Resets at every byte of a request, and `count` that come and go at once:
 * others are served, and nothing is left of them. */
void expect_storm_leaves_nothing(const attacked_t *attacked, int count);

/* A client that sends a request and never reads the reply. */
int never_reading(const attacked_t *attacked, int port);

/* Clients whose unread replies fill the kernel's buffers are evicted. */
void expect_never_reading_give_way(const attacked_t *attacked);

/* The process has no file descriptor left for one more client. */
void expect_no_fds_are_survived(const attacked_t *attacked);

/* -- By servers ----------------------------------------------------------- */

/* A request of 200 ms ends then, and says `text`. */
void expect_request_ends_in_time(channel_make_t *make,
                                 void (*serve)(peer_server_t *, int),
                                 const char *text);

/* A request to a silent server can be interrupted. */
void expect_request_is_interrupted(channel_make_t *make);

#endif
