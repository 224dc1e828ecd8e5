/*
 * Side channels by TLS: test certificates, and checks common to all
 * transports.
 */
#ifndef VNX_TLS_CHANNELS_H
#define VNX_TLS_CHANNELS_H

#include "side_channel_peer.h"

#define SECRET "correct horse battery staple"

/* -- Certificates (make_certificates.sh says which) ----------------------- */

/* For cmocka_run_group_tests(). */
int make_certificates(void **state);
int remove_certificates(void **state);

/* Where the file of that name is. */
const char *in_folder(const char *name, char path[128]);

/* -- Channels that use them ----------------------------------------------- */

/* A listener with that certificate; `timeout_ms`: 0 leaves the default. */
vnx_side_channel_t *tls_server(channel_make_t *make, const char *certificate,
                               const char *secret, uint32_t timeout_ms);

/* A client that trusts that authority and expects that name. */
vnx_side_channel_t *tls_client(channel_make_t *make, const char *ca,
                               const char *name, const char *secret);

/* -- What must hold ------------------------------------------------------- */

void expect_tls_carries_every_size(channel_make_t *make, const char *secret);

/* Certificates that are expired, for other names or untrusted make the client
 * refuse; it reports the cause and sends nothing, not even `secret`. */
void expect_tls_checks_certificates(channel_make_t *make, const char *secret);

/* Half a handshake affects only its sender; neither end waits for ever. */
void expect_tls_half_handshakes_hold_nobody(channel_make_t *make);

void expect_tls_shutdown_leaves_nothing(channel_make_t *make);

#endif
