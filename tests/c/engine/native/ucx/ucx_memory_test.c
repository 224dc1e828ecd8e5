/* Regions and keys over a scripted libucp. */
#include "ucx_flight.h"

/* Its keys' handles are made where it is used. */
static vnx_status_t
move(void)
{
    assert_int_equal(ucx_flight_post(&flight), VNX_IN_PROG);
    return ucx_flight_await(&flight);
}

static void
replace_key(const void *bytes, size_t len)
{
    ucx_region_t *region = (ucx_region_t *)ground.remote;
    vnxi_ucx_key_t *key;
    vnx_error_t error;
    if (vnxi_ucx_key_create(conn, bytes, len, &key, &error) != VNX_OK) {
        fail_msg("%s", error.cause);
    }
    vnxi_ucx_key_release(region->key);
    region->key = key;
}

/* -- Ours ------------------------------------------------------------------
 */

static void
test_ucx_memory_mapping_failure_is_reported(void **state)
{
    char bytes[64];
    vnxi_ucx_mem_t *mem = NULL;
    vnx_error_t error;
    (void)state;
    ucx_side_open(&here, "here", 1, 20.0);
    atomic_store(&fake->fail_map, -3);
    assert_int_equal(vnxi_ucx_mem_map(here.ucx, VNX_MEM_DRAM, (uintptr_t)bytes,
                                      sizeof bytes, &mem, &error),
                     VNX_ERR_BACKEND);
    assert_null(mem);
    assert_string_equal(error.operation, "vnx_agent_register");
    assert_string_equal(error.cause, "UCX: ucp_mem_map: fake status -3");

    atomic_store(&fake->fail_map, 0);
    atomic_store(&fake->fail_pack, -4);
    assert_int_equal(vnxi_ucx_mem_map(here.ucx, VNX_MEM_DRAM, (uintptr_t)bytes,
                                      sizeof bytes, &mem, &error),
                     VNX_ERR_BACKEND);
    assert_null(mem);
    assert_string_equal(error.cause, "UCX: ucp_rkey_pack: fake status -4");
    assert_int_equal(fake->mems, 0);
    ucx_side_close(&here);
}

/* Peers compare them with those that they have loaded. */
static void
test_ucx_memory_key_stays_the_same(void **state)
{
    char bytes[64];
    vnxi_ucx_mem_t *mem;
    vnx_error_t error;
    unsigned char before[64];
    (void)state;
    ucx_side_open(&here, "here", 1, 20.0);
    assert_int_equal(vnxi_ucx_mem_map(here.ucx, VNX_MEM_DRAM, (uintptr_t)bytes,
                                      sizeof bytes, &mem, &error),
                     VNX_OK);
    assert_int_equal(fake->buffers, 0);
    assert_in_range(mem->key_len, 1, sizeof before);
    memcpy(before, mem->key, mem->key_len);
    vnxi_ucx_mem_unmap(mem);
    assert_int_equal(fake->mems, 0);
    vnxi_ucx_mem_unmap(mem);
    assert_memory_equal(mem->key, before, mem->key_len);
    vnxi_ucx_mem_free(mem);
    vnxi_ucx_mem_free(NULL);
    ucx_side_close(&here);
}

static void
test_ucx_memory_outlives_its_agent(void **state)
{
    char bytes[64];
    vnxi_ucx_mem_t *mem;
    vnx_error_t error;
    (void)state;
    ucx_side_open(&here, "here", 1, 20.0);
    assert_int_equal(vnxi_ucx_mem_map(here.ucx, VNX_MEM_DRAM, (uintptr_t)bytes,
                                      sizeof bytes, &mem, &error),
                     VNX_OK);
    ucx_side_close(&here);
    assert_int_equal(fake->contexts, 1);
    assert_int_equal(fake->workers, 0);
    vnxi_ucx_mem_free(mem);
    assert_int_equal(fake->contexts, 0);
}

static void *
map_many(void *ucx)
{
    enum { MANY = 100 };
    static char bytes[4096];
    vnxi_ucx_mem_t *mems[MANY];
    for (int i = 0; i < MANY; i++) {
        if (vnxi_ucx_mem_map(ucx, VNX_MEM_DRAM, (uintptr_t)bytes + i, 100,
                             &mems[i], NULL) != VNX_OK) {
            return ucx;
        }
    }
    for (int i = 0; i < MANY; i++) {
        vnxi_ucx_mem_free(mems[i * 37 % MANY]);
    }
    return NULL;
}

static void
test_ucx_memory_is_mapped_from_any_thread(void **state)
{
    pthread_t threads[4];
    void *failed;
    (void)state;
    ucx_side_open(&here, "here", 1, 20.0);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, map_many, here.ucx),
                         0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    assert_int_equal(fake->mems, 0);
    ucx_side_close(&here);
}

/* -- Theirs ----------------------------------------------------------------
 */

static void
test_ucx_memory_refuses_invalid_keys(void **state)
{
    unsigned char bytes[8193] = {0};
    vnxi_ucx_key_t *key = NULL;
    vnx_error_t error;
    (void)state;
    open_sides(1, 20.0);
    conn = ucx_side_connect(&here, &there, 7);
    for (size_t len = 0; len < 9; len++) {
        assert_int_equal(vnxi_ucx_key_create(conn, bytes, len, &key, &error),
                         VNX_ERR_MISMATCH);
    }
    assert_int_equal(vnxi_ucx_key_create(conn, bytes, 8193, &key, &error),
                     VNX_ERR_MISMATCH);
    assert_non_null(strstr(error.cause, "8193 bytes"));
    for (unsigned type = VNXI_UCS_MEMORY_ZE_MANAGED + 1; type < 256; type++) {
        bytes[8] = (unsigned char)type;
        assert_int_equal(vnxi_ucx_key_create(conn, bytes, 100, &key, &error),
                         VNX_ERR_MISMATCH);
    }
    assert_null(key);
    for (unsigned type = 0; type <= VNXI_UCS_MEMORY_ZE_MANAGED; type++) {
        bytes[8] = (unsigned char)type;
        assert_int_equal(vnxi_ucx_key_create(conn, bytes, 8192, &key, &error),
                         VNX_OK);
        vnxi_ucx_key_release(key);
    }
    vnxi_ucx_key_release(NULL);
    assert_int_equal(fake->unpacks, 0);
    end_conn(conn);
    close_sides();
}

static void
test_ucx_memory_recognises_a_key(void **state)
{
    unsigned char bytes[64] = {1, 2, 3};
    vnxi_ucx_key_t *key;
    vnx_error_t error;
    (void)state;
    open_sides(1, 20.0);
    conn = ucx_side_connect(&here, &there, 7);
    assert_int_equal(vnxi_ucx_key_create(conn, bytes, 64, &key, &error),
                     VNX_OK);
    assert_true(vnxi_ucx_key_is(key, bytes, 64));
    assert_false(vnxi_ucx_key_is(key, bytes, 63));
    bytes[63] ^= 1;
    assert_false(vnxi_ucx_key_is(key, bytes, 64));
    vnxi_ucx_key_release(key);
    end_conn(conn);
    close_sides();
}

/* UCX does not know its length and must not read past it. */
static void
test_ucx_memory_truncated_key_is_refused(void **state)
{
    (void)state;
    begin(1, 20.0, VNX_OP_READ, 128, 10);
    vnxi_ucx_mem_t *mem = ucx_mem_of(NULL, ground.remote);
    replace_key(mem->key, 9);
    assert_int_equal(move(), VNX_ERR_INVALID_PARAM);
    assert_non_null(
        strstr(flight.error.cause, "its key for the region cannot be used"));
    replace_key(mem->key, 15);
    assert_int_equal(move(), VNX_ERR_INVALID_PARAM);
    assert_int_equal(posts(FAKE_GET), 0);
    replace_key(mem->key, mem->key_len);
    assert_int_equal(move(), VNX_OK);
    finish();
}

/* Every worker that used it releases its handle. */
static void
test_ucx_memory_key_is_released_on_every_worker(void **state)
{
    (void)state;
    begin(3, 20.0, VNX_OP_READ, 65536, 64);
    vnxi_ucx_mem_t *mem = ucx_mem_of(NULL, ground.remote);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(move(), VNX_OK);
    }
    assert_in_range(fake->keys, 1, 3);
    replace_key(mem->key, mem->key_len);
    AWAIT(atomic_load(&fake->keys) == 0);
    assert_int_equal(move(), VNX_OK);
    assert_in_range(fake->keys, 1, 3);
    finish();
}

/* An unused key needs no work on the workers. */
static void
test_ucx_memory_unused_key_needs_no_worker(void **state)
{
    (void)state;
    begin(4, 20.0, VNX_OP_READ, 128, 10);
    assert_int_equal(fake->workers, 2);
    vnxi_ucx_mem_t *mem = ucx_mem_of(NULL, ground.remote);
    for (int i = 0; i < 50; i++) {
        replace_key(mem->key, mem->key_len);
    }
    assert_int_equal(fake->workers, 2);
    assert_int_equal(fake->unpacks, 0);
    finish();
}

/* Keys, connection and agent may go in any order. */
static void
test_ucx_memory_keys_outlive_their_connection(void **state)
{
    (void)state;
    begin(2, 20.0, VNX_OP_READ, 128, 1200);
    assert_int_equal(move(), VNX_OK);
    vnxi_ucx_conn_close(conn);
    AWAIT(atomic_load(&fake->keys) == 0); /* they go with their endpoint */
    finish();
}

static void
test_ucx_memory_keys_outlive_the_stop(void **state)
{
    (void)state;
    begin(2, 20.0, VNX_OP_READ, 128, 1200);
    assert_int_equal(move(), VNX_OK);
    vnxi_ucx_stop(here.ucx);
    assert_int_equal(fake->keys, 0);
    finish();
}

static void
test_ucx_memory_keys_are_freed_last(void **state)
{
    (void)state;
    begin(2, 20.0, VNX_OP_READ, 128, 1200);
    assert_int_equal(move(), VNX_OK);
    ucx_flight_free(&flight);
    end_conn(conn);
    close_sides();
    assert_int_equal(fake->workers, 0);
    assert_int_equal(fake->contexts, 2); /* the regions' */
    ground_close(&ground);
}

/* A failed connection also releases the handles. */
static void
test_ucx_memory_keys_of_a_lost_connection_are_freed(void **state)
{
    (void)state;
    begin(2, 20.0, VNX_OP_READ, 128, 1200);
    assert_int_equal(move(), VNX_OK);
    calls->break_eps(VNXI_UCS_ERR_CONNECTION_RESET);
    ucx_side_await_lost(&here);
    AWAIT(atomic_load(&fake->keys) == 0);
    finish();
}

static void
test_ucx_memory_handles_many_keys(void **state)
{
    enum { MANY = 300, ROW = 32 };
    static vnxi_region_t *remote[MANY];
    static vnx_desc_t left[MANY], right[MANY];
    unsigned char *mine = calloc(MANY, ROW), *theirs = malloc(MANY * ROW);
    (void)state;
    open_sides(2, 20.0);
    conn = ucx_side_connect(&here, &there, 7);
    memset(theirs, 0x5a, MANY * ROW);
    vnxi_region_t *local = ucx_region(&here, NULL, mine, MANY * ROW);
    for (size_t i = 0; i < MANY; i++) {
        remote[i] = ucx_region(&there, conn, theirs + i * ROW, ROW);
        left[i] = (vnx_desc_t){(uintptr_t)mine + i * ROW, ROW, 0};
        right[i] =
            (vnx_desc_t){(uintptr_t)theirs + (i * 7 % MANY) * ROW, ROW, 0};
    }
    ucx_flight_make(&flight, &(ucx_flight_spec_t){.conn = conn,
                                                  .op = VNX_OP_READ,
                                                  .local = &local,
                                                  .remote = remote,
                                                  .local_regions = 1,
                                                  .remote_regions = MANY,
                                                  .local_rows = left,
                                                  .remote_rows = right,
                                                  .rows = MANY});
    assert_int_equal(move(), VNX_OK);
    assert_memory_equal(mine, theirs, MANY * ROW);
    assert_int_equal(fake->keys, MANY);
    /* Some by their owner, the others by the end of the connection. */
    ucx_flight_free(&flight);
    for (size_t i = 0; i < MANY; i += 2) {
        vnxi_region_release(remote[i]);
    }
    end_conn(conn);
    for (size_t i = 1; i < MANY; i += 2) {
        vnxi_region_release(remote[i]);
    }
    vnxi_region_release(local);
    close_sides();
    free(mine);
    free(theirs);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        with_fake(test_ucx_memory_mapping_failure_is_reported),
        with_fake(test_ucx_memory_key_stays_the_same),
        with_fake(test_ucx_memory_outlives_its_agent),
        with_fake(test_ucx_memory_is_mapped_from_any_thread),
        with_fake(test_ucx_memory_refuses_invalid_keys),
        with_fake(test_ucx_memory_recognises_a_key),
        with_fake(test_ucx_memory_truncated_key_is_refused),
        with_fake(test_ucx_memory_key_is_released_on_every_worker),
        with_fake(test_ucx_memory_unused_key_needs_no_worker),
        with_fake(test_ucx_memory_keys_outlive_their_connection),
        with_fake(test_ucx_memory_keys_outlive_the_stop),
        with_fake(test_ucx_memory_keys_are_freed_last),
        with_fake(test_ucx_memory_keys_of_a_lost_connection_are_freed),
        with_fake(test_ucx_memory_handles_many_keys),
    };
    return fake_load() != 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
