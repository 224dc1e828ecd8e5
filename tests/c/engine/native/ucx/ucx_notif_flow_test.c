/* Notifications by UCX: validation, order, and reporting of losses. */
#include "ucx_fake.h"

#include "engine/native/ucx/ep.h"
#include "engine/native/ucx/notif.h"

static vnxi_writer_t
write_notif(const char *sender, const void *message, size_t len)
{
    vnxi_writer_t writer = {0};
    vnxi_ucx_notif_write(&writer, sender, strlen(sender), message, len);
    assert_false(writer.failed);
    return writer;
}

static bool
reads(const void *payload, size_t len)
{
    vnxi_ucx_notif_t notif;
    /* A separate block, so that ASan detects a read past its end. */
    void *copy = malloc(len > 0 ? len : 1);
    memcpy(copy, payload, len);
    bool ok = vnxi_ucx_notif_read(copy, len, &notif);
    free(copy);
    return ok;
}

/* -- The payload -----------------------------------------------------------
 */

static void
test_ucx_notif_flow_round_trips(void **state)
{
    char bytes[300];
    vnxi_ucx_notif_t notif;
    (void)state;
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (char)i;
    }
    for (size_t len = 0; len <= sizeof bytes; len++) {
        vnxi_writer_t writer = write_notif("an agent", bytes, len);
        assert_true(vnxi_ucx_notif_read(writer.data, writer.len, &notif));
        assert_int_equal(notif.sender_len, 8);
        assert_memory_equal(notif.sender, "an agent", 8);
        assert_int_equal(notif.message_len, len);
        assert_memory_equal(notif.message, bytes, len);
        vnxi_writer_fini(&writer);
    }
}

static void
test_ucx_notif_flow_too_long_payload_is_refused(void **state)
{
    unsigned char longer[128] = {0};
    (void)state;
    vnxi_writer_t writer = write_notif("abc", "hello", 5);
    memcpy(longer, writer.data, writer.len);
    for (size_t extra = 1; extra < 40; extra++) {
        assert_false(reads(longer, writer.len + extra));
    }
    vnxi_writer_fini(&writer);
}

/* Every other value of every byte outside of the two texts. */
static void
test_ucx_notif_flow_payload_with_a_wrong_byte_is_refused(void **state)
{
    (void)state;
    vnxi_writer_t writer = write_notif("abc", "hello", 5);
    unsigned char *bytes = (unsigned char *)writer.data;
    for (size_t i = 0; i < writer.len; i++) {
        bool is_text = (i >= 23 && i < 26) || (i >= 38 && i < 43);
        for (unsigned change = 1; change < 256; change++) {
            bytes[i] ^= (unsigned char)change;
            assert_int_equal(reads(bytes, writer.len), is_text);
            bytes[i] ^= (unsigned char)change;
        }
    }
    vnxi_writer_fini(&writer);
}

static void
test_ucx_notif_flow_payload_with_overflowing_lengths_is_refused(void **state)
{
    static const uint64_t lengths[] = {
        UINT64_MAX, UINT64_MAX - 1, UINT64_MAX - 26,      INT64_MAX,
        1u << 31,   UINT32_MAX,     (uint64_t)1 << 63 | 3};
    (void)state;
    vnxi_writer_t writer = write_notif("abc", "hello", 5);
    unsigned char *bytes = (unsigned char *)writer.data;
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        memcpy(bytes + 15, &lengths[i], 8);
        assert_false(reads(bytes, writer.len));
        memcpy(bytes + 15, &(uint64_t){3}, 8);
        memcpy(bytes + 30, &lengths[i], 8);
        assert_false(reads(bytes, writer.len));
        memcpy(bytes + 30, &(uint64_t){5}, 8);
        assert_true(reads(bytes, writer.len));
    }
    vnxi_writer_fini(&writer);
}

/* -- What comes ------------------------------------------------------------
 */

/* Invalid payloads are skipped, and valid ones arrive. */
static void
test_ucx_notif_flow_garbage_is_skipped(void **state)
{
    uint64_t seed = 7;
    unsigned char noise[256];
    (void)state;
    ucx_side_open(&here, "here", 1, 20.0);
    vnxi_writer_t good = write_notif("stranger", "a\0b", 3);
    for (int i = 0; i < 300; i++) {
        for (size_t k = 0; k < sizeof noise; k++) {
            noise[k] = (unsigned char)next_random(&seed);
        }
        memcpy(noise, "nixlSerDes|name", i % 16);
        calls->deliver(noise, next_random(&seed) % sizeof noise, 0);
    }
    for (size_t len = 0; len < good.len; len++) {
        calls->deliver(good.data, len, 0);
    }
    calls->deliver(NULL, 0, 0);
    calls->deliver(good.data, good.len, VNXI_UCP_AM_RECV_RNDV);
    calls->deliver(good.data, good.len, 0);
    ucx_side_await_messages(&here, 1);
    assert_string_equal(here.messages[0].sender, "stranger");
    assert_int_equal(here.messages[0].len, 3);
    assert_memory_equal(here.messages[0].bytes, "a\0b", 3);
    vnxi_ucx_stop(here.ucx);
    assert_int_equal(here.message_count, 1);
    vnxi_writer_fini(&good);
    ucx_side_close(&here);
}

static void
test_ucx_notif_flow_of_any_length(void **state)
{
    static const size_t sizes[] = {0, 1, 2, 255, 4096, 100000, 1000000};
    enum { COUNT = sizeof sizes / sizeof sizes[0] };
    unsigned char *bytes = malloc(1000000);
    (void)state;
    for (size_t i = 0; i < 1000000; i++) {
        bytes[i] = (unsigned char)(i * i >> 5);
    }
    open_sides(1, 20.0);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    for (size_t i = 0; i < COUNT; i++) {
        send_to(conn, bytes, sizes[i]);
    }
    ucx_side_await_messages(&there, COUNT);
    for (size_t i = 0; i < COUNT; i++) {
        assert_int_equal(there.messages[i].len, sizes[i]);
        assert_memory_equal(there.messages[i].bytes, bytes, sizes[i]);
        assert_string_equal(there.messages[i].sender, "here");
    }
    end_conn(conn);
    close_sides();
    free(bytes);
}

/* -- Order -----------------------------------------------------------------
 */

enum { THREADS = 4, EACH = 250 };

typedef struct sender {
    pthread_t thread;
    vnxi_ucx_conn_t *conn;
    uint32_t number;
} sender_t;

static void *
send_many(void *argument)
{
    sender_t *sender = argument;
    for (uint32_t i = 0; i < EACH; i++) {
        uint32_t message[2] = {sender->number, i};
        vnx_error_t error;
        if (vnxi_ucx_conn_send_notif(sender->conn, message, sizeof message,
                                     &error) != VNX_OK) {
            return &sender->number;
        }
    }
    return NULL;
}

static void
keep_order(void)
{
    sender_t senders[THREADS];
    uint32_t next[THREADS] = {0};

    open_sides(1, 20.0);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    for (uint32_t i = 0; i < THREADS; i++) {
        senders[i] = (sender_t){.conn = conn, .number = i};
        assert_int_equal(
            pthread_create(&senders[i].thread, NULL, send_many, &senders[i]),
            0);
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        void *failed;
        pthread_join(senders[i].thread, &failed);
        assert_null(failed);
    }
    ucx_side_await_messages(&there, THREADS * EACH);
    for (size_t i = 0; i < THREADS * EACH; i++) {
        uint32_t message[2];
        memcpy(message, there.messages[i].bytes, sizeof message);
        assert_true(message[0] < THREADS);
        assert_int_equal(message[1], next[message[0]]++);
    }
    end_conn(conn);
    close_sides();
}

static void
test_ucx_notif_flow_order_of_each_thread(void **state)
{
    (void)state;
    keep_order();
}

static void
test_ucx_notif_flow_order_with_immediate_sends(void **state)
{
    (void)state;
    atomic_store(&fake->of[FAKE_AM].at_once, true);
    keep_order();
}

static void
test_ucx_notif_flow_order_with_callbacks_within_posts(void **state)
{
    (void)state;
    atomic_store(&fake->inside, true);
    keep_order();
}

static bool
sleeps(vnxi_ucx_worker_t *worker)
{
    vnxi_mutex_lock(&worker->lock);
    bool asleep = worker->sleeping && !worker->nudged;
    vnxi_mutex_unlock(&worker->lock);
    return asleep;
}

/* The caller's thread sends, without waiting for another to wake up. */
static void
test_ucx_notif_flow_sends_on_the_callers_thread(void **state)
{
    (void)state;
    open_sides(1, 20.0);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    for (uint32_t i = 0; i < 100; i++) {
        atomic_store(&fake->of[FAKE_AM].at_once, i % 2 == 0);
        AWAIT(sleeps(&here.ucx->workers[0]));
        send_to(conn, &i, sizeof i);
        assert_true(pthread_equal(atomic_load(&fake->of[FAKE_AM].poster),
                                  pthread_self()));
    }
    ucx_side_await_messages(&there, 100);
    for (uint32_t i = 0; i < 100; i++) {
        assert_memory_equal(there.messages[i].bytes, &i, sizeof i);
    }
    end_conn(conn);
    close_sides();
}

/* -- Limits and losses -----------------------------------------------------
 */

/* A peer that receives nothing fills the queue and no more memory. */
static void
test_ucx_notif_flow_queue_is_bounded(void **state)
{
    vnx_error_t error;
    (void)state;
    open_sides(1, 20.0);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    hold(FAKE_AM, true);
    /* Pretend that this much is queued. */
    atomic_fetch_add(&conn->queued, VNXI_UCX_NOTIF_QUEUE_MAX - 10);
    send_to(conn, "the last", 8);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(vnxi_ucx_conn_send_notif(conn, "x", 1, &error),
                         VNX_ERR_BACKEND);
        assert_string_equal(error.operation, "vnx_agent_send_notif");
        assert_non_null(strstr(error.cause, "256 MiB"));
    }
    /* Sent notifications free space in the queue. */
    AWAIT(calls->held(FAKE_AM) == 1);
    hold(FAKE_AM, false);
    end_all(FAKE_AM, 0);
    ucx_side_await_messages(&there, 1);
    AWAIT(vnxi_ucx_conn_send_notif(conn, "y", 1, &error) == VNX_OK);
    ucx_side_await_messages(&there, 2);
    assert_memory_equal(there.messages[1].bytes, "y", 1);
    AWAIT(atomic_load(&conn->queued) == VNXI_UCX_NOTIF_QUEUE_MAX - 10);
    end_conn(conn);
    close_sides();
}

static void
lose_one(void)
{
    vnx_error_t error;

    open_sides(1, 20.0);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 4);
    AWAIT(vnxi_ucx_conn_is_wired(conn));
    for (int i = 0; i < 3; i++) {
        if (vnxi_ucx_conn_send_notif(conn, &i, sizeof i, &error) != VNX_OK) {
            assert_int_equal(error.status, VNX_ERR_REMOTE_DISCONNECT);
        }
    }
    ucx_side_await_lost(&here);
    ucx_side_await_messages(&there, 1); /* sent before, in flight */
    assert_int_equal(here.lost_cookie, 4);
    assert_string_equal(here.lost_cause,
                        "UCX could not send a notification: fake status -4");
    assert_int_equal(vnxi_ucx_conn_send_notif(conn, "x", 1, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
    end_conn(conn);
    close_sides();
    assert_int_equal(here.lost_count, 1);
}

/* No loss is silent: waiting callers get an error. */
static void
test_ucx_notif_flow_failed_send_loses_the_connection(void **state)
{
    (void)state;
    let_fail(FAKE_AM, 2, VNXI_UCS_ERR_NO_MEMORY);
    lose_one();
}

static void
test_ucx_notif_flow_refused_send_loses_the_connection(void **state)
{
    (void)state;
    refuse(FAKE_AM, 2, VNXI_UCS_ERR_NO_MEMORY);
    lose_one();
    assert_int_equal(there.message_count, 1);
}

/* The order is preserved while some wait in UCX for the peer. */
static void
test_ucx_notif_flow_order_after_a_wait(void **state)
{
    (void)state;
    open_sides(1, 20.0);
    vnxi_ucx_conn_t *conn = ucx_side_connect(&here, &there, 1);
    hold(FAKE_AM, true);
    for (int i = 0; i < 100; i++) {
        send_to(conn, &i, sizeof i);
        if (i == 50) {
            AWAIT(calls->held(FAKE_AM) == 51);
            assert_int_equal(there.message_count, 0);
        }
    }
    AWAIT(calls->held(FAKE_AM) == 100);
    end_all(FAKE_AM, 0);
    ucx_side_await_messages(&there, 100);
    for (int i = 0; i < 100; i++) {
        assert_memory_equal(there.messages[i].bytes, &i, sizeof i);
    }
    hold(FAKE_AM, false);
    end_conn(conn);
    close_sides();
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        with_fake(test_ucx_notif_flow_round_trips),
        with_fake(test_ucx_notif_flow_too_long_payload_is_refused),
        with_fake(test_ucx_notif_flow_payload_with_a_wrong_byte_is_refused),
        with_fake(
            test_ucx_notif_flow_payload_with_overflowing_lengths_is_refused),
        with_fake(test_ucx_notif_flow_garbage_is_skipped),
        with_fake(test_ucx_notif_flow_of_any_length),
        with_fake(test_ucx_notif_flow_order_of_each_thread),
        with_fake(test_ucx_notif_flow_order_with_immediate_sends),
        with_fake(test_ucx_notif_flow_order_with_callbacks_within_posts),
        with_fake(test_ucx_notif_flow_sends_on_the_callers_thread),
        with_fake(test_ucx_notif_flow_queue_is_bounded),
        with_fake(test_ucx_notif_flow_failed_send_loses_the_connection),
        with_fake(test_ucx_notif_flow_refused_send_loses_the_connection),
        with_fake(test_ucx_notif_flow_order_after_a_wait),
    };
    return fake_load() != 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
