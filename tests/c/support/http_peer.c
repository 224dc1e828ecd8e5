#include "http_peer.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char asked[HTTP_REPLY_MAX]; /* read after the server has stopped */

void
http_no_proxy(void)
{
    static const char *const names[] = {
        "http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        unsetenv(names[i]);
    }
}

vnx_side_channel_t *
http_new(const vnx_side_channel_options_t *options)
{
    return channel_of(VNX_SIDE_CHANNEL_HTTP, options);
}

char *
http_ask(int port, const void *request, size_t len, char reply[HTTP_REPLY_MAX])
{
    int fd = peer_connect(port);

    peer_send(fd, request, len);
    size_t have = peer_recv(fd, reply, HTTP_REPLY_MAX - 1);
    reply[have] = '\0';
    close(fd);
    return reply;
}

/* Where the reply at `text` ends; NULL: not all of it is there. */
static const char *
reply_end(const char *text)
{
    const char *body = strstr(text, "\r\n\r\n");
    const char *length = strstr(text, "Content-Length: ");

    if (body == NULL || length == NULL || length > body) {
        return body == NULL ? NULL : body + 4;
    }
    body += 4;
    size_t len = strtoul(length + 16, NULL, 10);
    return strlen(body) >= len ? body + len : NULL;
}

void
http_read_replies(int fd, size_t count, char reply[HTTP_REPLY_MAX])
{
    const char *at = reply;
    size_t have = 0;

    reply[0] = '\0';
    while (count > 0) {
        const char *end = reply_end(at);
        if (end != NULL) {
            at = end;
            count--;
            continue;
        }
        ssize_t got = recv(fd, reply + have, HTTP_REPLY_MAX - 1 - have, 0);
        if (got <= 0) {
            fail_msg("%zu replies are missing after '%s'", count, reply);
        }
        have += (size_t)got;
        reply[have] = '\0';
    }
    assert_int_equal(at - reply, have);
}

int
http_status(const char *reply)
{
    return strncmp(reply, "HTTP/1.1 ", 9) == 0 ? atoi(reply + 9) : 0;
}

const char *
http_asked(void)
{
    return asked;
}

bool
http_read_request(int client)
{
    size_t have = 0;

    do {
        ssize_t count = recv(client, asked + have, sizeof asked - 1 - have, 0);
        if (count <= 0) {
            return false;
        }
        have += (size_t)count;
        asked[have] = '\0';
    } while (strstr(asked, "\r\n\r\n") == NULL);
    return true;
}

void
http_serve_reply(peer_server_t *server, int client)
{
    if (http_read_request(client)) {
        peer_send_reply(server, client);
    }
}
