/*
 * The options of a side channel: read from a caller of any version, checked,
 * completed with the defaults, and with their own copies of the strings.
 */
#ifndef VNXI_SIDE_CHANNEL_OPTIONS_H
#define VNXI_SIDE_CHANNEL_OPTIONS_H

#include "net/tls.h"

/* Read the options of a channel of that kind.  `given` may be NULL.  On VNX_OK
 * *out_p has every option except strings without a default, which stay NULL;
 * `tls` is one of VNXI_TLS_*.  *out_p is owned: vnxi_options_fini().
 * Statuses: vnx_side_channel_create(). */
vnx_status_t vnxi_options_read(vnx_side_channel_kind_t kind,
                               const vnx_side_channel_options_t *given,
                               vnx_side_channel_options_t *out_p,
                               vnx_error_t *error);

/* Free the strings and wipe the secret.  May be called again. */
void vnxi_options_fini(vnx_side_channel_options_t *options);

#endif
