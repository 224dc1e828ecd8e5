#include "net/acceptor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define BATCH 64
#define PAUSE_MS 50 /* when the system is out of resources */

bool
vnxi_acceptor_has_left(int client)
{
    char byte;
    ssize_t count = recv(client, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR);
}

/* -- Pauses --------------------------------------------------------------- */

static void
set_accepting(vnxi_acceptor_t *acceptor, bool is_on)
{
    acceptor->batch = 0;
    for (size_t i = 0; i < acceptor->sockets.count; i++) {
        if (acceptor->listeners[i] != NULL) {
            (is_on ? evconnlistener_enable
                   : evconnlistener_disable)(acceptor->listeners[i]);
        }
    }
}

/* Pause until the next round of the loop or, with `is_long`, until the system
 * may have resources again. */
static void
pause_accepting(vnxi_acceptor_t *acceptor, bool is_long)
{
    struct timeval tv = {.tv_usec = PAUSE_MS * 1000};

    set_accepting(acceptor, false);
    if (is_long) {
        event_add(acceptor->resume_event, &tv);
    } else {
        event_active(acceptor->resume_event, EV_TIMEOUT, 0);
    }
}

static void
on_resume(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    set_accepting(arg, true);
}

void
vnxi_acceptor_count(vnxi_acceptor_t *acceptor)
{
    if (++acceptor->batch >= BATCH) {
        pause_accepting(acceptor, false);
    }
}

/* -- Out of descriptors --------------------------------------------------- */

/* Does this error of accept() concern only the one client, which is gone? */
static bool
is_clients(int err)
{
    switch (err) {
    case ECONNABORTED:
    case EINTR:
    case EPROTO:
    case EPERM:
    case ENETDOWN:
    case ENOPROTOOPT:
    case EHOSTDOWN:
    case ENONET:
    case EHOSTUNREACH:
    case ENETUNREACH:
        return true;
    default:
        return false;
    }
}

/* accept() reports that no descriptor is left even if no client is waiting. */
static bool
has_client(int fd)
{
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    return poll(&entry, 1, 0) > 0;
}

static int
reserve_open(void)
{
    return open("/dev/null", O_RDONLY | O_CLOEXEC);
}

/* Accept a client with the reserved descriptor, and close it.  False: the
 * reserve could not be opened again. */
static bool
refuse_one(vnxi_acceptor_t *acceptor, int fd)
{
    if (acceptor->reserve_fd >= 0) {
        close(acceptor->reserve_fd);
        int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
        if (client >= 0) {
            acceptor->ops->refused(acceptor->owner);
            close(client);
        }
    }
    acceptor->reserve_fd = reserve_open();
    return acceptor->reserve_fd >= 0;
}

void
vnxi_acceptor_failed(vnxi_acceptor_t *acceptor, int fd, int err)
{
    bool is_full = err == EMFILE || err == ENFILE;

    if (is_clients(err) || (is_full && !has_client(fd)) ||
        (is_full && acceptor->ops->evict(acceptor->owner)) ||
        (is_full && acceptor->ops->refused != NULL &&
         refuse_one(acceptor, fd))) {
        return; /* the next round accepts another */
    }
    pause_accepting(acceptor, true);
}

/* -- Accepting ------------------------------------------------------------ */

static void
on_accept(struct evconnlistener *listener, evutil_socket_t fd,
          struct sockaddr *addr, int len, void *arg)
{
    (void)listener;
    vnxi_acceptor_t *acceptor = arg;
    vnxi_address_t from = {.len = (socklen_t)len};

    memcpy(&from.addr, addr, (size_t)len);
    acceptor->ops->accept(acceptor->owner, (int)fd, &from);
    vnxi_acceptor_count(acceptor);
}

static void
on_error(struct evconnlistener *listener, void *arg)
{
    int err = errno;
    vnxi_acceptor_failed(arg, evconnlistener_get_fd(listener), err);
}

/* -- Creation and end ----------------------------------------------------- */

uint32_t
vnxi_acceptor_connections(unsigned part, uint32_t most)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 ||
        limit.rlim_cur / part >= most) {
        return most;
    }
    return limit.rlim_cur < part ? 1 : (uint32_t)(limit.rlim_cur / part);
}

bool
vnxi_acceptor_open(vnxi_acceptor_t *acceptor, vnxi_loop_t *loop,
                   const vnxi_sockets_t *sockets,
                   const vnxi_acceptor_ops_t *ops)
{
    *acceptor = (vnxi_acceptor_t){.ops = ops,
                                  .owner = loop->owner,
                                  .sockets = *sockets,
                                  .reserve_fd = -1};
    if (ops->refused != NULL) {
        acceptor->reserve_fd = reserve_open();
        if (acceptor->reserve_fd < 0) {
            return false;
        }
    }
    acceptor->resume_event = evtimer_new(loop->base, on_resume, acceptor);
    if (acceptor->resume_event == NULL) {
        return false;
    }
    for (size_t i = 0; i < sockets->count; i++) {
        struct evconnlistener *listener =
            evconnlistener_new(loop->base, on_accept, acceptor,
                               LEV_OPT_CLOSE_ON_EXEC, 0, sockets->fds[i]);
        if (listener == NULL) {
            return false;
        }
        acceptor->listeners[i] = listener;
        evconnlistener_set_error_cb(listener, on_error);
    }
    return true;
}

void
vnxi_acceptor_close(vnxi_acceptor_t *acceptor)
{
    if (acceptor->ops == NULL) {
        return;
    }
    for (size_t i = 0; i < acceptor->sockets.count; i++) {
        if (acceptor->listeners[i] != NULL) {
            evconnlistener_free(acceptor->listeners[i]);
        }
    }
    vnxi_loop_event_free(acceptor->resume_event);
    vnxi_sockets_close(&acceptor->sockets);
    if (acceptor->reserve_fd >= 0) {
        close(acceptor->reserve_fd);
    }
    *acceptor = (vnxi_acceptor_t){0};
}
