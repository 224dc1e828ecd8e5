/* The treatment of clients before they become connections. */
#include "side_channel_peer.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/acceptor.h"

/* Both ends of a connection over loopback. */
static void
connect_pair(int pair[2])
{
    struct sockaddr_storage addr = {.ss_family = AF_INET};
    socklen_t len = sizeof addr;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(listener >= 0);
    assert_int_equal(listen(listener, 1), 0); /* binds a free port */
    assert_int_equal(getsockname(listener, (void *)&addr, &len), 0);
    pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(pair[0], (void *)&addr, len), 0);
    pair[1] = accept(listener, NULL, NULL);
    assert_true(pair[1] >= 0);
    close(listener);
}

/* Wait for the other end's action: POLLIN, or POLLRDHUP for its close. */
static void
await(int fd, short events)
{
    struct pollfd entry = {.fd = fd, .events = events};
    assert_int_equal(poll(&entry, 1, 20000), 1);
}

static void
test_acceptor_waiting_client_is_connected(void **state)
{
    (void)state;
    int pair[2];

    connect_pair(pair);
    assert_false(vnxi_acceptor_has_left(pair[1])); /* and it did not wait */
    peer_send(pair[0], "x", 1);
    await(pair[1], POLLIN);
    assert_false(vnxi_acceptor_has_left(pair[1]));
    close(pair[0]);
    close(pair[1]);
}

/* The bytes it sent may be a request that needs an answer. */
static void
test_acceptor_client_that_sent_is_served(void **state)
{
    (void)state;
    int pair[2];
    char byte = 0;

    connect_pair(pair);
    peer_send(pair[0], "x", 1);
    shutdown(pair[0], SHUT_WR);
    await(pair[1], POLLRDHUP);
    assert_false(vnxi_acceptor_has_left(pair[1]));
    assert_int_equal(recv(pair[1], &byte, 1, 0), 1); /* nothing was taken */
    assert_int_equal(byte, 'x');
    assert_true(vnxi_acceptor_has_left(pair[1]));
    close(pair[0]);
    close(pair[1]);
}

static void
test_acceptor_closed_client_has_left(void **state)
{
    (void)state;
    int pair[2];

    connect_pair(pair);
    close(pair[0]);
    await(pair[1], POLLRDHUP);
    assert_true(vnxi_acceptor_has_left(pair[1]));
    close(pair[1]);
}

static void
test_acceptor_reset_client_has_left(void **state)
{
    (void)state;
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    int pair[2];

    connect_pair(pair);
    setsockopt(pair[0], SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(pair[0]);
    await(pair[1], POLLRDHUP);
    assert_true(vnxi_acceptor_has_left(pair[1]));
    close(pair[1]);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_acceptor_waiting_client_is_connected),
        cmocka_unit_test(test_acceptor_client_that_sent_is_served),
        cmocka_unit_test(test_acceptor_closed_client_has_left),
        cmocka_unit_test(test_acceptor_reset_client_has_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
