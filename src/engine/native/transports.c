#include "engine/native/transports.h"

#define DECLARE(name) extern const vnxi_transport_t vnxi_##name##_transport;
VNXI_TRANSPORT_LIST(DECLARE)

#define POINTER(name) &vnxi_##name##_transport,
const vnxi_transport_t *const vnxi_transports[VNXI_TRANSPORTS] = {
    VNXI_TRANSPORT_LIST(POINTER)};
