/*
 * From a request's host to a connected socket: looking the name up, then
 * connecting to its addresses (connect.h).  The first part of a try by
 * every transport that speaks over sockets of its own.  Never waits; of one
 * thread at a time.
 */
#ifndef VNXI_SIDE_CHANNEL_DIAL_H
#define VNXI_SIDE_CHANNEL_DIAL_H

#include "net/connect.h"
#include "side_channel/transport.h"

typedef struct vnxi_dial {
    vnxi_request_t *request; /* borrowed */
    vnxi_lookup_t *lookup;   /* owned */
    bool connecting;         /* the connector is in use */
    vnxi_connector_t connector;
    char address[VNXI_ADDRESS_TEXT]; /* "": not known yet */
} vnxi_dial_t;

/* Nothing begins yet. */
void vnxi_dial_init(vnxi_dial_t *dial, vnxi_request_t *request);

/* End what is under way.  May be called again. */
void vnxi_dial_fini(vnxi_dial_t *dial);

/* VNX_OK: *fd_p, owned, is connected.  VNX_IN_PROG: the request says what to
 * wait for.  Anything else: its record says what failed. */
vnx_status_t vnxi_dial_step(vnxi_dial_t *dial, int *fd_p);

/* Who is spoken to, for records: the address, or the host before that. */
const char *vnxi_dial_whom(const vnxi_dial_t *dial);

/* "resolving" or "connecting to". */
const char *vnxi_dial_phase(const vnxi_dial_t *dial);

#endif
