/*
 * Turns the host of a request into a connected socket: looks the name up, then
 * connects to its addresses (connect.h).  The first part of a try, for every
 * transport that opens its own sockets.  Never waits; used by one thread at a
 * time.
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

/* Prepare; nothing begins yet. */
void vnxi_dial_init(vnxi_dial_t *dial, vnxi_request_t *request);

/* Stop the look-up or the attempts.  May be called again. */
void vnxi_dial_fini(vnxi_dial_t *dial);

/* Do what can be done now.  VNX_OK: *fd_p, owned, is connected.  VNX_IN_PROG:
 * the request says what to wait for.  Any other status: the record of the
 * request says what failed. */
vnx_status_t vnxi_dial_step(vnxi_dial_t *dial, int *fd_p);

/* Return the name of the peer for records: its address, or the host while the
 * address is not known. */
const char *vnxi_dial_whom(const vnxi_dial_t *dial);

/* Return the phase for records: "resolving" or "connecting to". */
const char *vnxi_dial_phase(const vnxi_dial_t *dial);

#endif
