#include "side_channel/server.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fork_fds.h"
#include "base/log.h"
#include "base/thread.h"
#include "net/loop.h"

#ifdef VNXI_SIDE_CHANNEL_TLS
#include <openssl/ssl.h>

#include "side_channel/options.h"
#include "side_channel/tls.h"
#endif

#define PAUSE_MS 50 /* of accepting, when the system is out of resources */

/* -- Accepting ------------------------------------------------------------ */

bool
vnxi_server_has_left(int client)
{
    char byte;
    ssize_t count = recv(client, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR);
}

void
vnxi_server_pause(vnxi_server_t *server, bool long_one)
{
    struct timeval tv = {.tv_usec = PAUSE_MS * 1000};

    server->ops->accept(server, false);
    if (long_one) {
        event_add(server->resume_event, &tv);
    } else {
        event_active(server->resume_event, EV_TIMEOUT, 0);
    }
}

static void
on_resume(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    vnxi_server_t *server = arg;
    server->ops->accept(server, true);
}

static int
reserve_open(void)
{
    return open("/dev/null", O_RDONLY | O_CLOEXEC);
}

/* Accept a client with the reserved descriptor, and close it. */
static void
refuse_one(vnxi_server_t *server, int fd)
{
    if (server->reserve_fd >= 0) {
        close(server->reserve_fd);
        int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
        if (client >= 0) {
            vnxi_stat_add(&server->stats->accepted);
            vnxi_stat_add(&server->stats->evicted);
            close(client);
        }
    }
    server->reserve_fd = reserve_open();
}

/* accept() reports that no descriptor is left even if no client is waiting. */
static bool
has_client(int fd)
{
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    return poll(&entry, 1, 0) > 0;
}

void
vnxi_server_starved(vnxi_server_t *server, int fd, int err)
{
    if (err != EMFILE && err != ENFILE) {
        vnxi_server_pause(server, true);
        return;
    }
    if (!has_client(fd) || server->ops->evict(server)) {
        return; /* the next round accepts it */
    }
    refuse_one(server, fd);
    if (server->reserve_fd < 0) {
        vnxi_server_pause(server, true);
    }
}

/* -- The thread ----------------------------------------------------------- */

static _Thread_local vnxi_server_t *running;

vnxi_server_t *
vnxi_server_running(void)
{
    return running;
}

static void *
server_main(void *arg)
{
    vnxi_server_t *server = arg;

    running = server;
    if (event_base_dispatch(server->base) != 0) {
        vnxi_log(VNXI_LOG_ERROR, "side channel on port %d: the loop ended: %s",
                 server->super.port, vnxi_errno(errno));
    }
    return NULL;
}

static vnx_status_t
thread_start(vnxi_server_t *server, const char *name,
             const vnxi_listen_params_t *params, vnx_error_t *error)
{
    int ret = vnxi_thread_start(&server->thread, server_main, server);
    if (ret != 0) {
        return vnxi_bind_failed(&params->bind, error, "starting the thread",
                                ret);
    }
    pthread_setname_np(server->thread, name);
    return VNX_OK;
}

static bool
thread_end(vnxi_server_t *server)
{
    uint64_t one = 1;

    if (!vnxi_fds_lost(server->fds)) {
        ssize_t written = write(server->stop_fd, &one, sizeof one);
        (void)written; /* cannot fail: the eventfd accepts a 1 */
    }
    return vnxi_thread_join(server->thread, server->fds) &&
           !vnxi_fds_lost(server->fds);
}

/* -- Creation and end ----------------------------------------------------- */

#ifdef VNXI_SIDE_CHANNEL_TLS

static vnx_status_t
tls_start(vnxi_server_t *server, vnx_error_t *error)
{
    return server->options->tls == VNXI_TLS_NONE
               ? VNX_OK
               : vnxi_tls_server_context(server->options, &server->tls, error);
}

static void
tls_stop(vnxi_server_t *server)
{
    SSL_CTX_free(server->tls);
}

#else

static vnx_status_t
tls_start(vnxi_server_t *server, vnx_error_t *error)
{
    (void)server, (void)error;
    return VNX_OK; /* never with TLS: vnx_side_channel_create() */
}

static void
tls_stop(vnxi_server_t *server)
{
    (void)server;
}

#endif

static bool
loop_make(vnxi_server_t *server)
{
    struct event_base *base = server->base = vnxi_loop_base_new();

    if (base == NULL) {
        return false;
    }
    server->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    server->reserve_fd = reserve_open();
    if (server->stop_fd < 0 || server->reserve_fd < 0) {
        return false;
    }
    server->resume_event = evtimer_new(base, on_resume, server);
    server->stop_event =
        event_new(base, server->stop_fd, EV_READ, vnxi_loop_on_stop, base);
    return server->resume_event != NULL && server->stop_event != NULL &&
           event_add(server->stop_event, NULL) == 0;
}

static vnx_status_t
rate_make(vnxi_server_t *server, vnx_error_t *error)
{
    uint32_t most = server->options->max_rate;

    if (most > 0) {
        server->rate = vnxi_rate_create(most);
    }
    return most == 0 || server->rate != NULL
               ? VNX_OK
               : vnxi_error_no_memory(error, VNXI_OP_START, sizeof(void *));
}

static vnx_status_t
server_init(vnxi_server_t *server, const vnxi_server_ops_t *ops,
            const vnxi_listen_params_t *params, vnx_error_t *error)
{
    server->ops = ops;
    server->fds = vnxi_fds_epoch();
    server->options = params->options;
    server->stats = params->stats;
    server->blobs = params->blobs;
    server->stop_fd = server->reserve_fd = -1;
    vnx_status_t status = rate_make(server, error);
    if (status == VNX_OK) {
        status = tls_start(server, error);
    }
    if (status == VNX_OK) {
        status = vnxi_sockets_open(&params->bind, &server->sockets, error);
    }
    if (status != VNX_OK) {
        return status;
    }
    server->super.port = server->sockets.port;
    return loop_make(server) && ops->begin(server)
               ? VNX_OK
               : vnxi_bind_failed(&params->bind, error, "making the loop",
                                  errno);
}

vnx_status_t
vnxi_server_open(vnxi_server_t *server, const vnxi_server_ops_t *ops,
                 const char *name, const vnxi_listen_params_t *params,
                 vnxi_listener_t **out_p, vnx_error_t *error)
{
    vnx_status_t status = server_init(server, ops, params, error);
    if (status == VNX_OK) {
        status = thread_start(server, name, params, error);
    }
    if (status != VNX_OK) {
        ops->free(server);
        return status;
    }
    *out_p = &server->super;
    return VNX_OK;
}

bool
vnxi_server_stop(vnxi_listener_t *listener)
{
    vnxi_server_t *server = (vnxi_server_t *)listener;

    /* Freeing the server would close descriptor numbers that belong to other
     * files now. */
    if (!thread_end(server)) {
        return false;
    }
    server->ops->free(server);
    return true;
}

static void
close_if(int fd)
{
    if (fd >= 0) {
        close(fd);
    }
}

void
vnxi_server_fini(vnxi_server_t *server)
{
    vnxi_loop_event_free(server->resume_event);
    vnxi_loop_event_free(server->stop_event);
    vnxi_sockets_close(&server->sockets);
    vnxi_loop_base_free(server->base);
    tls_stop(server);
    vnxi_rate_free(server->rate);
    close_if(server->stop_fd);
    close_if(server->reserve_fd);
}
