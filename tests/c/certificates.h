/*
 * Certificates for the tests of TLS (make_certificates.sh says which), and
 * channels that use them.
 */
#ifndef VNX_CERTIFICATES_H
#define VNX_CERTIFICATES_H

#include "side_channel_peer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECRET "correct horse battery staple"

static char folder[64]; /* of the certificates */

static const char *
in_folder(const char *name, char path[128])
{
    snprintf(path, 128, "%s/%s", folder, name);
    return path;
}

/* For cmocka_run_group_tests(), as is the next. */
static int
make_certificates(void **state)
{
    (void)state;
    char command[512];

    strcpy(folder, "/tmp/vnx-tls-XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(command, sizeof command, "sh '%s' '%s'", VNX_MAKE_CERTIFICATES,
             folder);
    return system(command);
}

static int
remove_certificates(void **state)
{
    (void)state;
    char command[128];

    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

/* Options of a listener with that certificate; `paths` is room for theirs. */
static vnx_side_channel_options_t
server_options(const char *certificate, const char *secret, char paths[2][128])
{
    return (vnx_side_channel_options_t){
        .size = sizeof(vnx_side_channel_options_t),
        .tls_certificate = in_folder(certificate, paths[0]),
        .tls_key = in_folder("server.key", paths[1]),
        .secret = secret};
}

/* Options of a client that trusts that authority. */
static vnx_side_channel_options_t
client_options(const char *ca, const char *name, const char *secret,
               char path[128])
{
    return (vnx_side_channel_options_t){.size =
                                            sizeof(vnx_side_channel_options_t),
                                        .tls_ca = in_folder(ca, path),
                                        .tls_name = name,
                                        .secret = secret};
}

#endif
