/*
 * The transports, in the order of preference: X(name) stands for
 * vnxi_<name>_transport.  The number of a transport is its place in this list.
 * `process` is the first: VNXI_ROUTE_COPY is its number.  `shm` comes before
 * `cuda`, which has no connections of its own and uses those of `shm`.
 */
#ifndef VNXI_NATIVE_TRANSPORTS_H
#define VNXI_NATIVE_TRANSPORTS_H

#include "engine/native/transport.h"

#define VNXI_TRANSPORT_LIST(X) \
    X(process)                 \
    X(shm)                     \
    X(cuda)                    \
    X(ucx)

enum {
#define VNXI_TRANSPORT_NUMBER(name) VNXI_TRANSPORT_##name,
    VNXI_TRANSPORT_LIST(VNXI_TRANSPORT_NUMBER)
#undef VNXI_TRANSPORT_NUMBER
        VNXI_TRANSPORTS
};

extern const vnxi_transport_t *const vnxi_transports[VNXI_TRANSPORTS];

#endif
