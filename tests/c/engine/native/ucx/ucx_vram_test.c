/*
 * GPU memory over UCX, with both libraries played: libcuda has memory that the
 * CPU cannot touch, and libucp wants its callers to be in a CUDA context that
 * they may use while the program captures a graph.
 *
 * The first tests are those of a program without CUDA; then libcuda is loaded.
 */
#include "fake_gpu.h"

#include "agent_fixture.h"
#include "ucx_flight.h"

#include <vnx/log.h>

#include "engine/native/ucx/gpu.h"
#include "engine/parts/metadata.h"

#define KIB ((size_t)1 << 10)
#define CHUNK ((size_t)2 << 20) /* granularity of cuMemCreate() */

/* -- A program without CUDA ------------------------------------------------
 */

static void
test_ucx_vram_program_without_cuda_loads_nothing(void **state)
{
    char bytes[64];
    vnxi_ucx_mem_t *mem;
    vnx_error_t error;
    (void)state;

    ucx_side_open(&here, "here", 2, 20.0);
    assert_int_equal(vnxi_ucx_mem_map(here.ucx, VNX_MEM_DRAM, (uintptr_t)bytes,
                                      sizeof bytes, &mem, &error),
                     VNX_OK);
    assert_int_equal(fake->told[VNXI_UCS_MEMORY_HOST], 1);
    vnxi_ucx_mem_free(mem);
    ucx_side_close(&here);
    assert_null(dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD));
}

static void
test_ucx_vram_left_out_by_the_environment_is_refused(void **state)
{
    static char bytes[64];
    vnx_reg_desc_t desc = region_of(bytes, sizeof bytes);
    vnx_error_t error;
    (void)state;

    setenv("UCX_TLS", "tcp,sm", 1);
    vnx_agent_t *agent = make_agent("A");
    assert_int_equal(
        vnx_agent_register(agent, VNX_MEM_VRAM, &desc, 1, NULL, &error),
        VNX_ERR_NOT_SUPPORTED);
    unsetenv("UCX_TLS");
    assert_non_null(
        strstr(error.cause,
               "UCX: UCX has no support for CUDA, which UCX_TLS leaves out"));
    vnx_agent_release(agent);
}

static void
test_ucx_vram_transports_with_cuda_are_known(void **state)
{
    static const char *const with[] = {
        "",        "all",           "cuda",         "tcp,cuda",
        "rc,all",  "cuda_copy,tcp", "tcp,cuda_ipc", "^ib",
        "^tcp,sm", "^cuda_ipc",     "^cuda_copy",
    };
    static const char *const without[] = {
        "tcp",   "rc,ud,sm", "cud",       "cuda_copies,tcp",
        "^cuda", "^all",     "^tcp,cuda", "^cuda_ipc,cuda_copy",
    };
    (void)state;
    assert_true(vnxi_ucx_tls_has_cuda(NULL));
    for (size_t i = 0; i < sizeof with / sizeof with[0]; i++) {
        if (!vnxi_ucx_tls_has_cuda(with[i])) {
            fail_msg("%s has CUDA", with[i]);
        }
    }
    for (size_t i = 0; i < sizeof without / sizeof without[0]; i++) {
        if (vnxi_ucx_tls_has_cuda(without[i])) {
            fail_msg("%s has no CUDA", without[i]);
        }
    }
}

/* -- Memory ----------------------------------------------------------------
 */

static vnxi_cu_context_t contexts[2]; /* the program's: of two GPUs */
static int retains;                   /* of the program */

static int
cuda_setup(void **state)
{
    fake_reset(state);
    atomic_store(&fake->cuda, 1);
    atomic_store(&fake->needs_gpu, true);
    retains = gpu->retains;
    return 0;
}

/* Nothing is left, and no other thread's capture was disturbed. */
static int
cuda_check(void **state)
{
    vnxi_cu_context_t current;
    vnxi_cu_enum_t mode = VNXI_CU_STREAM_CAPTURE_MODE_GLOBAL;

    CU_OK(cu.cuCtxGetCurrent(&current));
    assert_ptr_equal(current, contexts[0]);
    CU_OK(cu.cuThreadExchangeStreamCaptureMode(&mode));
    assert_int_equal(mode, VNXI_CU_STREAM_CAPTURE_MODE_GLOBAL);
    assert_int_equal(fake->gpu_mems, 0);
    assert_int_equal(gpu->misuses, 0);
    assert_int_equal(gpu->captures_broken, 0);
    assert_int_equal(gpu->retains, retains);
    return fake_check(state);
}

#define with_cuda(test) \
    cmocka_unit_test_setup_teardown(test, cuda_setup, cuda_check)

static vnxi_cu_ptr_t
map_chunks(size_t count)
{
    const vnxi_cu_alloc_prop_t prop = {
        .type = VNXI_CU_MEM_ALLOCATION_TYPE_PINNED,
        .location = {VNXI_CU_MEM_LOCATION_TYPE_DEVICE, 0},
    };
    const vnxi_cu_access_t access = {prop.location,
                                     VNXI_CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    vnxi_cu_ptr_t at;

    CU_OK(cu.cuMemAddressReserve(&at, count * CHUNK, 0, 0, 0));
    for (size_t i = 0; i < count; i++) {
        vnxi_cu_mem_t chunk;
        CU_OK(cu.cuMemCreate(&chunk, CHUNK, &prop, 0));
        CU_OK(cu.cuMemMap(at + i * CHUNK, CHUNK, 0, chunk, 0));
        CU_OK(cu.cuMemRelease(chunk));
    }
    CU_OK(cu.cuMemSetAccess(at, count * CHUNK, &access, 1));
    return at;
}

static void
unmap_chunks(vnxi_cu_ptr_t at, size_t count)
{
    CU_OK(cu.cuMemUnmap(at, count * CHUNK));
    CU_OK(cu.cuMemAddressFree(at, count * CHUNK));
}

static vnxi_ucx_mem_t *
map(vnx_mem_t kind, uint64_t addr, uint64_t len)
{
    vnxi_ucx_mem_t *mem = NULL;
    vnx_error_t error;

    if (vnxi_ucx_mem_map(here.ucx, kind, addr, len, &mem, &error) != VNX_OK) {
        fail_msg("%s", error.cause);
    }
    return mem;
}

static void
assert_refused(vnx_mem_t kind, uint64_t addr, uint64_t len,
               vnx_status_t status, const char *cause)
{
    vnxi_ucx_mem_t *mem = NULL;
    vnx_error_t error;

    assert_int_equal(vnxi_ucx_mem_map(here.ucx, kind, addr, len, &mem, &error),
                     status);
    assert_null(mem);
    assert_string_equal(error.operation, "vnx_agent_register");
    assert_string_equal(error.cause, cause);
}

/* -- Kinds of memory -------------------------------------------------------
 */

static void
test_ucx_vram_is_mapped_as_what_it_is(void **state)
{
    vnxi_cu_ptr_t device, managed;
    static char bytes[64], pinned[4096];
    (void)state;

    CU_OK(cu.cuMemAlloc_v2(&device, 64 * KIB));
    CU_OK(client.cuMemAllocManaged(&managed, 64 * KIB, 1));
    CU_OK(cu.cuMemHostRegister_v2(pinned, sizeof pinned, 0));
    ucx_side_open(&here, "here", 1, 20.0);
    const struct {
        vnx_mem_t kind;
        uint64_t addr;
        int type;
    } cases[] = {
        {VNX_MEM_VRAM, device + 100, VNXI_UCS_MEMORY_CUDA},
        {VNX_MEM_VRAM, managed, VNXI_UCS_MEMORY_CUDA_MANAGED},
        {VNX_MEM_DRAM, managed, VNXI_UCS_MEMORY_CUDA_MANAGED},
        {VNX_MEM_DRAM, (uintptr_t)bytes, VNXI_UCS_MEMORY_HOST},
        {VNX_MEM_DRAM, (uintptr_t)pinned, VNXI_UCS_MEMORY_HOST},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int before = fake->told[cases[i].type];
        vnxi_ucx_mem_t *mem = map(cases[i].kind, cases[i].addr, 64);
        assert_int_equal(fake->told[cases[i].type], before + 1);
        assert_int_equal(mem->key[8], cases[i].type);
        assert_int_equal(fake->gpu_mems,
                         cases[i].type != VNXI_UCS_MEMORY_HOST);
        vnxi_ucx_mem_free(mem);
    }
    ucx_side_close(&here);
    CU_OK(cu.cuMemHostUnregister(pinned));
    CU_OK(cu.cuMemFree_v2(managed));
    CU_OK(cu.cuMemFree_v2(device));
}

static void
test_ucx_vram_that_ucx_takes_for_something_else_is_refused(void **state)
{
    vnxi_cu_ptr_t device;
    (void)state;

    CU_OK(cu.cuMemAlloc_v2(&device, 64 * KIB));
    ucx_side_open(&here, "here", 2, 20.0);
    assert_refused(VNX_MEM_DRAM, device, 64, VNX_ERR_INVALID_PARAM,
                   "this is GPU memory: register it as VRAM");
    atomic_store(&fake->blind, true);
    assert_refused(VNX_MEM_VRAM, device, 64, VNX_ERR_BACKEND,
                   "UCX takes this for CPU memory (its type 0), but it is "
                   "CUDA memory");
    atomic_store(&fake->blind, false);
    atomic_store(&fake->fail_mem_query, -1);
    assert_refused(VNX_MEM_VRAM, device, 64, VNX_ERR_BACKEND,
                   "UCX: ucp_mem_query: fake status -1");
    atomic_store(&fake->fail_mem_query, 0);
    atomic_store(&fake->fail_pack, -4);
    assert_refused(VNX_MEM_VRAM, device, 64, VNX_ERR_BACKEND,
                   "UCX: ucp_rkey_pack: fake status -4");
    assert_int_equal(fake->mems, 0);
    ucx_side_close(&here);
    CU_OK(cu.cuMemFree_v2(device));
}

/* -- Threads ---------------------------------------------------------------
 */

/* A region of here and one of there. */
typedef struct field {
    vnxi_region_t *local, *remote;
    vnxi_ucx_conn_t *conn;
    size_t len;
} field_t;

/* The lists of these tests are of DRAM, whatever the region is for UCX. */
static vnxi_region_t *
make_region(ucx_side_t *side, vnxi_ucx_conn_t *from, vnx_mem_t kind,
            uint64_t addr, size_t len)
{
    vnxi_region_t *base =
        vnxi_region_create(&ucx_region_class, VNX_MEM_DRAM, addr, len, 0);
    ucx_region_t *region = (ucx_region_t *)base;
    vnx_error_t error;

    assert_non_null(region);
    if (vnxi_ucx_mem_map(side->ucx, kind, addr, len, &region->mem, &error) !=
            VNX_OK ||
        (from != NULL &&
         vnxi_ucx_key_create(from, region->mem->key, region->mem->key_len,
                             &region->key, &error) != VNX_OK)) {
        fail_msg("%s", error.cause);
    }
    set_route(base, ROUTE_OTHER);
    return base;
}

/* All of it in rows that follow each other. */
static void
move_field(const field_t *field, vnx_op_t op, size_t row, bool no_merge)
{
    size_t rows = field->len / row;
    vnx_desc_t *left = calloc(rows, sizeof *left);
    vnx_desc_t *right = calloc(rows, sizeof *right);
    ucx_flight_t one;

    for (size_t i = 0; i < rows; i++) {
        left[i] = (vnx_desc_t){field->local->addr + i * row, row, 0};
        right[i] = (vnx_desc_t){field->remote->addr + i * row, row, 0};
    }
    ucx_flight_make(&one, &(ucx_flight_spec_t){.conn = field->conn,
                                               .op = op,
                                               .local = &field->local,
                                               .remote = &field->remote,
                                               .local_regions = 1,
                                               .remote_regions = 1,
                                               .local_rows = left,
                                               .remote_rows = right,
                                               .rows = rows,
                                               .no_merge = no_merge});
    assert_int_equal(ucx_flight_post(&one), VNX_IN_PROG);
    vnx_status_t status = ucx_flight_await(&one);
    if (status != VNX_OK) {
        fail_msg("%s", one.error.cause);
    }
    ucx_flight_free(&one);
    free(left);
    free(right);
}

static void
random_bytes(unsigned char *bytes, size_t len, uint64_t seed)
{
    for (size_t i = 0; i < len; i++) {
        bytes[i] = (unsigned char)(next_random(&seed) >> 32);
    }
}

/* Threads that run before the memory is registered, threads that start later,
 * the caller's, and one that sends a notification for a worker. */
static void
test_ucx_vram_is_used_in_a_context_by_every_thread(void **state)
{
    enum { LEN = 4 << 20 };
    static unsigned char sent[LEN], got[LEN];
    vnxi_cu_ptr_t mine, theirs;
    (void)state;

    CU_OK(cu.cuMemAlloc_v2(&mine, LEN));
    CU_OK(cu.cuMemAlloc_v2(&theirs, LEN));
    atomic_store(&gpu->capturing, 1);
    open_sides(3, 20.0);
    field_t field = {.conn = ucx_side_connect(&here, &there, 7), .len = LEN};
    await_wired(field.conn);
    field.local = make_region(&here, NULL, VNX_MEM_VRAM, mine, LEN);
    field.remote = make_region(&there, field.conn, VNX_MEM_VRAM, theirs, LEN);
    assert_true(fake->gpu_checks > 0);
    int workers = fake->workers;
    random_bytes(sent, LEN, 1);
    gpu_calls->poke(theirs, sent, LEN);
    move_field(&field, VNX_OP_READ, 16 * KIB, true);
    gpu_calls->peek(mine, got, LEN);
    assert_memory_equal(got, sent, LEN);
    assert_true(fake->workers > workers);
    random_bytes(sent, LEN, 2);
    gpu_calls->poke(mine, sent, LEN);
    move_field(&field, VNX_OP_WRITE, 16 * KIB, true);
    gpu_calls->peek(theirs, got, LEN);
    assert_memory_equal(got, sent, LEN);
    for (size_t i = 1; i <= 50; i++) {
        send_to(field.conn, "hello", 5);
        ucx_side_await_messages(&there, i);
    }
    vnxi_region_release(field.local);
    vnxi_region_release(field.remote);
    end_conn(field.conn);
    close_sides();
    atomic_store(&gpu->capturing, 0);
    CU_OK(cu.cuMemFree_v2(mine));
    CU_OK(cu.cuMemFree_v2(theirs));
}

/* The workers stay where they are while memory is mapped; without any, the
 * next memory decides, and the old context is given back. */
static void
test_ucx_vram_context_is_that_of_the_first_region(void **state)
{
    vnxi_cu_ptr_t first, second;
    (void)state;

    CU_OK(cu.cuMemAlloc_v2(&first, 64 * KIB));
    CU_OK(cu.cuCtxPushCurrent_v2(contexts[1]));
    CU_OK(cu.cuMemAlloc_v2(&second, 64 * KIB));
    CU_OK(cu.cuCtxPopCurrent_v2(NULL));
    ucx_side_open(&here, "here", 2, 20.0);
    vnxi_ucx_mem_t *a = map(VNX_MEM_VRAM, first, 64 * KIB);
    int pushes = gpu_calls->count("cuCtxPushCurrent_v2");
    vnxi_ucx_mem_t *b = map(VNX_MEM_VRAM, second, 64 * KIB);
    assert_int_equal(gpu_calls->count("cuCtxPushCurrent_v2"), pushes + 1);
    assert_int_equal(gpu->retains, retains + 3); /* a's, b's, the workers' */
    vnxi_ucx_mem_free(a);
    vnxi_ucx_mem_free(b);
    assert_int_equal(gpu->retains, retains + 1);

    /* The program is done with that GPU. */
    CU_OK(cu.cuMemFree_v2(first));
    b = map(VNX_MEM_VRAM, second, 64 * KIB);
    assert_int_equal(gpu->retains, retains + 2);
    vnxi_ucx_mem_free(b);
    ucx_side_close(&here);
    CU_OK(cu.cuMemFree_v2(second));
}

/* A prepared list may keep the region. */
static void
test_ucx_vram_outlives_its_agent(void **state)
{
    vnxi_cu_ptr_t device;
    (void)state;

    CU_OK(cu.cuMemAlloc_v2(&device, 64 * KIB));
    ucx_side_open(&here, "here", 2, 20.0);
    vnxi_ucx_mem_t *mem = map(VNX_MEM_VRAM, device, 64 * KIB);
    ucx_side_close(&here);
    assert_int_equal(gpu->retains, retains + 1);
    vnxi_ucx_mem_unmap(mem);
    assert_int_equal(gpu->retains, retains);
    CU_OK(cu.cuMemFree_v2(device));
    vnxi_ucx_mem_free(mem);
}

/* Nothing of the agent's is mapped when the driver refuses. */
static void
test_ucx_vram_without_a_context_is_refused(void **state)
{
    vnxi_cu_ptr_t device;
    (void)state;

    CU_OK(cu.cuMemAlloc_v2(&device, 64 * KIB));
    ucx_side_open(&here, "here", 2, 20.0);
    gpu_calls->refuse("cuCtxPushCurrent_v2", VNXI_CUDA_ERROR_INVALID_CONTEXT);
    assert_refused(VNX_MEM_VRAM, device, 64 * KIB, VNX_ERR_BACKEND,
                   "GPU 0: cuCtxPushCurrent_v2: CUDA_ERROR_INVALID_CONTEXT "
                   "(201)");
    gpu_calls->refuse("cuCtxPushCurrent_v2", 0);
    assert_int_equal(fake->mems, 0);
    vnxi_ucx_mem_free(map(VNX_MEM_VRAM, device, 64 * KIB));
    ucx_side_close(&here);
    CU_OK(cu.cuMemFree_v2(device));
}

/* The other one moves its share.  When it can enter, it starts, in the
 * context. */
static void
test_ucx_vram_worker_without_a_context_does_not_start(void **state)
{
    vnxi_cu_ptr_t device;
    (void)state;

    CU_OK(cu.cuMemAlloc_v2(&device, 4 << 20));
    begin(2, 20.0, VNX_OP_READ, 16 * KIB, 256);
    vnxi_ucx_mem_t *mem = map(VNX_MEM_VRAM, device, 4 << 20);
    gpu_calls->refuse("cuCtxPushCurrent_v2", VNXI_CUDA_ERROR_INVALID_CONTEXT);
    assert_int_equal(ucx_flight_post(&flight), VNX_IN_PROG);
    assert_int_equal(ucx_flight_await(&flight), VNX_OK);
    vnx_error_t error;
    assert_int_equal(vnxi_ucx_worker_start(&here.ucx->workers[1], &error),
                     VNX_ERR_BACKEND);
    assert_non_null(strstr(error.cause,
                           "a thread of UCX cannot enter the context of GPU "
                           "memory: GPU 0: cuCtxPushCurrent_v2"));
    assert_int_equal(fake->workers, 2);
    gpu_calls->refuse("cuCtxPushCurrent_v2", 0);
    assert_int_equal(ucx_flight_post(&flight), VNX_IN_PROG);
    AWAIT(atomic_load(&fake->workers) == 3);
    assert_int_equal(ucx_flight_await(&flight), VNX_OK);
    vnxi_ucx_mem_free(mem);
    finish();
    CU_OK(cu.cuMemFree_v2(device));
}

static void *
map_many(void *device)
{
    for (int i = 0; i < 50; i++) {
        vnxi_ucx_mem_free(map(
            VNX_MEM_VRAM, *(vnxi_cu_ptr_t *)device + (uint64_t)i * 256, 256));
    }
    return NULL;
}

static void
test_ucx_vram_is_mapped_from_any_thread(void **state)
{
    pthread_t threads[4];
    vnxi_cu_ptr_t device;
    (void)state;

    CU_OK(cu.cuMemAlloc_v2(&device, 64 * KIB));
    ucx_side_open(&here, "here", 2, 20.0);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, map_many, &device),
                         0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    ucx_side_close(&here);
    CU_OK(cu.cuMemFree_v2(device));
}

/* -- Several allocations ---------------------------------------------------
 */

/* As our side of a transfer, every byte arrives; as a peer's it has no key. */
static void
test_ucx_vram_of_several_allocations_is_cut(void **state)
{
    enum { CHUNKS = 4 };
    const size_t len = CHUNKS * CHUNK - 2 * 4096, row = len / 6;
    unsigned char *theirs = malloc(len), *bytes = malloc(len);
    (void)state;

    vnxi_cu_ptr_t at = map_chunks(CHUNKS);
    open_sides(2, 20.0);
    field_t field = {.conn = ucx_side_connect(&here, &there, 7),
                     .len = row * 6};
    field.local = make_region(&here, NULL, VNX_MEM_VRAM, at + 4096, len);
    field.remote =
        make_region(&there, field.conn, VNX_MEM_DRAM, (uintptr_t)theirs, len);
    const vnxi_ucx_mem_t *mem = ((ucx_region_t *)field.local)->mem;
    assert_int_equal(mem->part_count, CHUNKS);
    assert_null(mem->key);
    assert_int_equal(mem->key_len, 0);
    assert_int_equal(vnxi_ucx_withheld(here.ucx), 1);

    random_bytes(theirs, len, 1);
    move_field(&field, VNX_OP_READ, row, false);
    gpu_calls->peek(at + 4096, bytes, field.len);
    assert_memory_equal(bytes, theirs, field.len);
    random_bytes(bytes, len, 2);
    gpu_calls->poke(at + 4096, bytes, len);
    move_field(&field, VNX_OP_WRITE, row, false);
    assert_memory_equal(bytes, theirs, field.len);

    vnxi_region_release(field.local);
    vnxi_region_release(field.remote);
    assert_int_equal(vnxi_ucx_withheld(here.ucx), 0);
    end_conn(field.conn);
    close_sides();
    unmap_chunks(at, CHUNKS);
    free(theirs);
    free(bytes);
}

static size_t
count_rows(vnx_agent_t *agent, const char *entry, vnx_mem_t mem)
{
    vnxi_metadata_t md;
    vnx_bytes_t blob;
    size_t count = 0;

    assert_ok(vnx_agent_metadata(agent, &blob, e));
    assert_ok(vnxi_metadata_parse(blob.data, blob.len, &md, e));
    for (size_t i = 0; i < md.section_count; i++) {
        const vnxi_md_section_t *section = &md.sections[i];
        if (section->mem == mem && section->backend.len == strlen(entry) &&
            memcmp(section->backend.data, entry, strlen(entry)) == 0) {
            count += section->count;
        }
    }
    vnxi_metadata_fini(&md);
    free(blob.data);
    return count;
}

static bool
is_described(vnx_agent_t *agent, const char *text)
{
    vnx_bytes_t json;
    assert_ok(vnx_agent_describe(agent, NULL, 0, &json, e));
    bool is = memmem(json.data, json.len, text, strlen(text)) != NULL;
    free(json.data);
    return is;
}

static void
change(vnx_agent_t *agent, bool adds, vnx_mem_t mem, uint64_t addr, size_t len)
{
    vnx_reg_desc_t desc = {.desc = {addr, len, 0}};
    assert_ok(adds ? vnx_agent_register(agent, mem, &desc, 1, NULL, e)
                   : vnx_agent_deregister(agent, mem, &desc, 1, NULL, e));
}

/* Peers would read beyond the first allocation. */
static void
test_ucx_vram_of_several_allocations_is_not_published(void **state)
{
    vnxi_cu_ptr_t at = map_chunks(3);
    vnx_agent_t *agent = make_agent("A");
    (void)state;

    change(agent, true, VNX_MEM_VRAM, at + CHUNK, CHUNK);
    assert_int_equal(count_rows(agent, "UCX", VNX_MEM_VRAM), 1);
    assert_false(is_described(agent, "ucx_regions_withheld"));
    change(agent, true, VNX_MEM_VRAM, at, CHUNK + 1);
    assert_int_equal(count_rows(agent, "UCX", VNX_MEM_VRAM), 1);
    assert_int_equal(count_rows(agent, "CUDA", VNX_MEM_VRAM), 2);
    assert_true(is_described(agent, "\"ucx_regions_withheld\": 1"));
    change(agent, false, VNX_MEM_VRAM, at, CHUNK + 1);
    assert_false(is_described(agent, "ucx_regions_withheld"));
    change(agent, false, VNX_MEM_VRAM, at + CHUNK, CHUNK);
    vnx_agent_close(agent);
    vnx_agent_release(agent);
    unmap_chunks(at, 3);
}

/* -- The warning -----------------------------------------------------------
 */

static atomic_int warnings;

static void
count_warning(void *context, const vnx_log_line_t *line)
{
    (void)context;
    if (line->level == VNX_LOG_WARNING &&
        strstr(line->text, "UCX_TLS=tcp leaves out CUDA") != NULL) {
        atomic_fetch_add(&warnings, 1);
    }
}

static void
test_ucx_vram_left_out_by_the_environment_is_said_once(void **state)
{
    vnxi_cu_ptr_t device;
    (void)state;

    CU_OK(cu.cuMemAlloc_v2(&device, 64 * KIB));
    atomic_store(&fake->cuda, 0);
    vnx_log_set(count_warning, NULL);
    vnx_agent_t *agent = make_agent("A");
    change(agent, true, VNX_MEM_VRAM, device, 1024);
    assert_int_equal(warnings, 0);
    setenv("UCX_TLS", "tcp", 1);
    change(agent, true, VNX_MEM_DRAM, (uintptr_t)&warnings, 4);
    assert_int_equal(warnings, 0);
    change(agent, true, VNX_MEM_VRAM, device + 1024, 1024);
    change(agent, true, VNX_MEM_VRAM, device + 2048, 1024);
    assert_int_equal(warnings, 1);
    unsetenv("UCX_TLS");
    vnx_log_set(NULL, NULL);
    vnx_agent_close(agent);
    vnx_agent_release(agent);
    CU_OK(cu.cuMemFree_v2(device));
}

int
main(void)
{
    const struct CMUnitTest without_cuda[] = {
        with_fake(test_ucx_vram_program_without_cuda_loads_nothing),
        with_fake(test_ucx_vram_left_out_by_the_environment_is_refused),
        with_fake(test_ucx_vram_transports_with_cuda_are_known),
    };
    const struct CMUnitTest tests[] = {
        with_cuda(test_ucx_vram_is_mapped_as_what_it_is),
        with_cuda(test_ucx_vram_that_ucx_takes_for_something_else_is_refused),
        with_cuda(test_ucx_vram_is_used_in_a_context_by_every_thread),
        with_cuda(test_ucx_vram_context_is_that_of_the_first_region),
        with_cuda(test_ucx_vram_outlives_its_agent),
        with_cuda(test_ucx_vram_without_a_context_is_refused),
        with_cuda(test_ucx_vram_worker_without_a_context_does_not_start),
        with_cuda(test_ucx_vram_is_mapped_from_any_thread),
        with_cuda(test_ucx_vram_of_several_allocations_is_cut),
        with_cuda(test_ucx_vram_of_several_allocations_is_not_published),
        with_cuda(test_ucx_vram_left_out_by_the_environment_is_said_once),
    };

    if (fake_load() != 0 ||
        cmocka_run_group_tests(without_cuda, NULL, NULL) != 0 ||
        gpu_load(FAKE_CUDA) != 0) {
        return 1;
    }
    atomic_store(&gpu->devices, 2);
    CU_OK(cu.cuInit(0));
    for (int i = 0; i < 2; i++) {
        CU_OK(cu.cuDevicePrimaryCtxRetain(&contexts[i], i));
    }
    CU_OK(client.cuCtxSetCurrent(contexts[0]));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
