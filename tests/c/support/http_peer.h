/*
 * A raw peer of the HTTP side channel with blocking sockets, and shared
 * helpers of its tests.
 */
#ifndef VNX_HTTP_PEER_H
#define VNX_HTTP_PEER_H

#include "side_channel_peer.h"

#define HTTP_GET(path) "GET " path " HTTP/1.1\r\nHost: here\r\n"
#define HTTP_LAST "Connection: close\r\n\r\n"
#define HTTP_REPLY_MAX 4096

/* No proxy of the environment comes between: the first call of main(). */
void http_no_proxy(void);

channel_make_t http_new;

/* -- A raw client --------------------------------------------------------- */

/* Send, read to the end of the connection, and return the text. */
char *http_ask(int port, const void *request, size_t len,
               char reply[HTTP_REPLY_MAX]);

/* Read until `count` replies are complete by their lengths. */
void http_read_replies(int fd, size_t count, char reply[HTTP_REPLY_MAX]);

/* The number after "HTTP/1.1 "; 0: there is none. */
int http_status(const char *reply);

/* -- A raw server --------------------------------------------------------- */

/* For peer_server_start(): reads a request (http_asked() has it), sends
 * `reply` as it stands, closes. */
void http_serve_reply(peer_server_t *server, int client);

/* Read up to the empty line; false: the client closed earlier. */
bool http_read_request(int client);

/* The last request read by a server in this program. */
const char *http_asked(void);

#endif
