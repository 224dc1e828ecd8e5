/* A client's connection to a peer that sends without a pause. */
#include "vnx_test.h"

#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "side_channel/client_conn.h"

#define BODY (4u << 20)

typedef struct flood {
    int fd;
    size_t len;
} flood_t;

static void *
send_all(void *arg)
{
    static const char bytes[1u << 16];
    const flood_t *flood = arg;

    for (size_t left = flood->len; left > 0;) {
        size_t len = left < sizeof bytes ? left : sizeof bytes;
        ssize_t sent = send(flood->fd, bytes, len, MSG_NOSIGNAL);
        if (sent <= 0) {
            break;
        }
        left -= (size_t)sent;
    }
    return NULL;
}

/* The socket blocks, so there is always more.  A step ends nevertheless. */
static void
test_client_conn_receives_a_part_in_each_step(void **state)
{
    (void)state;
    vnxi_request_t request = {.deadline = vnxi_clock_ns() + vnx_test_limit(60),
                              .wake = UINT64_MAX};
    vnxi_client_conn_t conn = {.request = &request, .stage = VNXI_CLIENT_OPEN};
    vnxi_incoming_t in = {.body_want = BODY};
    vnx_status_t status = VNX_IN_PROG;
    pthread_t thread;
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds),
                     0);
    conn.stream.fd = fds[0];
    flood_t flood = {.fd = fds[1], .len = BODY};
    assert_int_equal(pthread_create(&thread, NULL, send_all, &flood), 0);
    while (status == VNX_IN_PROG) {
        size_t before = in.body.len;
        status = vnxi_client_conn_receive(&conn, &in);
        assert_in_range(in.body.len - before, 1, BODY / 4);
        if (status == VNX_IN_PROG) {
            assert_int_equal(request.fd, fds[0]);
            assert_int_equal(request.events, POLLIN);
        }
    }
    assert_int_equal(status, VNX_OK);
    assert_int_equal(in.body.len, BODY);
    assert_int_equal(pthread_join(thread, NULL), 0);
    vnxi_body_fini(&in.body);
    vnxi_client_conn_fini(&conn);
    close(fds[1]);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_client_conn_receives_a_part_in_each_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
