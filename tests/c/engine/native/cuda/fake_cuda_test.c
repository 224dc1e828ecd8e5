/*
 * The fake libcuda.so.1, which the tests of the transport `cuda` rely on: it
 * behaves as the driver, and it notices wrong use.
 *
 * What ends the process, or needs another one, runs in a child: this program
 * again, with the name of a scene.
 */
#include "fake_cuda_load.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define MiB ((size_t)1 << 20)
#define CHUNK (2 * MiB)

static vnxi_cu_context_t context;

/* -- Help ------------------------------------------------------------------
 */

static void
fill(uint8_t *data, size_t len, uint64_t seed)
{
    for (size_t i = 0; i < len; i++) {
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
        data[i] = (uint8_t)(seed >> 56);
    }
}

static vnxi_cu_ptr_t
alloc(size_t size)
{
    vnxi_cu_ptr_t ptr = 0;
    CU_OK(cu.cuMemAlloc_v2(&ptr, size));
    return ptr;
}

static uint64_t
attribute(vnxi_cu_enum_t which, vnxi_cu_ptr_t ptr)
{
    uint64_t value = 0;
    void *at = &value;
    CU_OK(cu.cuPointerGetAttributes(1, &which, &at, ptr));
    return value;
}

static vnxi_cu_stream_t
make_stream(void)
{
    vnxi_cu_stream_t stream = NULL;
    CU_OK(cu.cuStreamCreateWithPriority(&stream, VNXI_CU_STREAM_NON_BLOCKING,
                                        -5));
    return stream;
}

static void
end_stream(vnxi_cu_stream_t stream)
{
    CU_OK(cu.cuStreamSynchronize(stream));
    CU_OK(cu.cuStreamDestroy_v2(stream));
}

static vnxi_cu_alloc_prop_t
properties(unsigned handle_types)
{
    return (vnxi_cu_alloc_prop_t){
        .type = VNXI_CU_MEM_ALLOCATION_TYPE_PINNED,
        .requestedHandleTypes = handle_types,
        .location = {VNXI_CU_MEM_LOCATION_TYPE_DEVICE, 0},
    };
}

static const vnxi_cu_access_t read_write = {
    {VNXI_CU_MEM_LOCATION_TYPE_DEVICE, 0},
    VNXI_CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
};

static vnxi_cu_mem_t
create(size_t size, unsigned handle_types)
{
    vnxi_cu_alloc_prop_t prop = properties(handle_types);
    vnxi_cu_mem_t mem = 0;
    CU_OK(cu.cuMemCreate(&mem, size, &prop, 0));
    return mem;
}

static vnxi_cu_ptr_t
reserve(size_t size)
{
    vnxi_cu_ptr_t ptr = 0;
    CU_OK(cu.cuMemAddressReserve(&ptr, size, 0, 0, 0));
    return ptr;
}

/* Maps it and releases the handle. */
static void
map(vnxi_cu_ptr_t ptr, size_t size, vnxi_cu_mem_t mem)
{
    CU_OK(cu.cuMemMap(ptr, size, 0, mem, 0));
    CU_OK(cu.cuMemRelease(mem));
    CU_OK(cu.cuMemSetAccess(ptr, size, &read_write, 1));
}

static const char ptx[] = ".version 7.0\n.target sm_70\n.address_size 64\n"
                          ".visible .entry " FAKE_CUDA_KERNEL
                          "(.param .u64 rows, .param .u32 count) { ret; }\n";

static vnxi_cu_function_t
load_kernel(vnxi_cu_module_t *module_p)
{
    vnxi_cu_function_t function = NULL;
    CU_OK(cu.cuModuleLoadDataEx(module_p, ptx, 0, NULL, NULL));
    CU_OK(cu.cuModuleGetFunction(&function, *module_p, FAKE_CUDA_KERNEL));
    return function;
}

static vnxi_cu_result_t
launch(vnxi_cu_function_t function, vnxi_cu_ptr_t rows, uint32_t count,
       vnxi_cu_stream_t stream)
{
    void *params[] = {&rows, &count};
    return cu.cuLaunchKernel(function, 16, 1, 1, 512, 1, 1, 0, stream, params,
                             NULL);
}

typedef struct row {
    uint64_t src, dst, len, unused;
} row_t;

/* Wait for something that another thread does. */
#define AWAIT(condition)       \
    do {                       \
        while (!(condition)) { \
            sched_yield();     \
        }                      \
    } while (0)

static void
expect_misuses(int count)
{
    assert_int_equal(atomic_exchange(&fake->misuses, 0), count);
}

/* -- Children --------------------------------------------------------------
 */

typedef struct child {
    pid_t pid;
    int socket;
} child_t;

static child_t
start_child(const char *scene)
{
    int pair[2];
    char number[16];
    char *arguments[] = {(char *)"fake_cuda_test", (char *)scene, number,
                         NULL};
    child_t child;

    assert_int_equal(
        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    int theirs = dup(pair[1]);
    assert_true(theirs >= 0);
    snprintf(number, sizeof number, "%d", theirs);
    assert_int_equal(posix_spawn(&child.pid, "/proc/self/exe", NULL, NULL,
                                 arguments, environ),
                     0);
    close(theirs);
    close(pair[1]);
    child.socket = pair[0];
    return child;
}

static int
await_child(child_t *child)
{
    int status = 0;

    close(child->socket);
    assert_int_equal(waitpid(child->pid, &status, 0), child->pid);
    return status;
}

static void
send_to(int socket, const void *data, size_t len, int fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr header;
    } control;
    struct iovec part = {(void *)data, len};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

    if (fd >= 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    if (sendmsg(socket, &message, MSG_NOSIGNAL) != (ssize_t)len) {
        abort();
    }
}

static int
receive_from(int socket, void *data, size_t len)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr header;
    } control;
    struct iovec part = {data, len};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof control,
    };
    int fd = -1;

    if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != (ssize_t)len) {
        abort();
    }
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header != NULL) {
        memcpy(&fd, CMSG_DATA(header), sizeof fd);
    }
    return fd;
}

/* -- Devices, contexts, threads --------------------------------------------
 */

static void
library_has_the_functions_of_the_table(void **state)
{
    (void)state;
#define CHECK(result, name, parameters) assert_non_null(cu.name);
    VNXI_CU_START_FUNCTIONS(CHECK)
    VNXI_CU_WORK_FUNCTIONS(CHECK)
    VNXI_CU_OPTIONAL_FUNCTIONS(CHECK)
#undef CHECK
    /* How the transport finds what its program has loaded. */
    void *same = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    assert_non_null(same);
    assert_ptr_equal(dlsym(same, "cuInit"), cu.cuInit);
    dlclose(same);
}

static void *
without_context(void *ptr_p)
{
    vnxi_cu_context_t current = context;
    vnxi_cu_ptr_t ptr = 0;
    vnxi_cu_event_t event;

    CU_OK(cu.cuCtxGetCurrent(&current));
    assert_null(current);
    assert_int_equal(cu.cuMemAlloc_v2(&ptr, 4096),
                     VNXI_CUDA_ERROR_INVALID_CONTEXT);
    assert_int_equal(cu.cuEventCreate(&event, 0),
                     VNXI_CUDA_ERROR_INVALID_CONTEXT);
    CU_OK(cu.cuCtxPushCurrent_v2(context));
    CU_OK(cu.cuMemAlloc_v2(&ptr, 4096));
    CU_OK(cu.cuCtxPopCurrent_v2(&current));
    assert_ptr_equal(current, context);
    assert_int_equal(attribute(VNXI_CU_POINTER_ATTRIBUTE_CONTEXT, ptr),
                     (uintptr_t)context);
    assert_int_equal(cu.cuMemFree_v2(ptr), VNXI_CUDA_ERROR_INVALID_CONTEXT);
    *(vnxi_cu_ptr_t *)ptr_p = ptr;
    return NULL;
}

static void *
forgets_to_pop(void *unused)
{
    (void)unused;
    CU_OK(cu.cuCtxPushCurrent_v2(context));
    return NULL;
}

static void
in_thread(void *(*function)(void *), void *arg)
{
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, function, arg), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

static void
every_thread_has_its_own_stack_of_contexts(void **state)
{
    vnxi_cu_ptr_t ptr = 0;

    (void)state;
    in_thread(without_context, &ptr);
    CU_OK(cu.cuMemFree_v2(ptr));
    expect_misuses(0);
    in_thread(forgets_to_pop, NULL);
    expect_misuses(1);
}

static void
context_is_active_while_it_is_retained(void **state)
{
    unsigned flags;
    int active = -1;
    vnxi_cu_context_t again;

    (void)state;
    CU_OK(cu.cuDevicePrimaryCtxRetain(&again, 0));
    assert_ptr_equal(again, context);
    CU_OK(cu.cuDevicePrimaryCtxRelease_v2(0));
    CU_OK(cu.cuDevicePrimaryCtxGetState(0, &flags, &active));
    assert_int_equal(active, 1);
    atomic_store(&fake->devices, 2);
    CU_OK(cu.cuDevicePrimaryCtxGetState(1, &flags, &active));
    assert_int_equal(active, 0);
    assert_int_equal(cu.cuDevicePrimaryCtxRelease_v2(1),
                     VNXI_CUDA_ERROR_INVALID_CONTEXT);
    expect_misuses(1);
    atomic_store(&fake->devices, 1);
    assert_int_equal(cu.cuDevicePrimaryCtxGetState(1, &flags, &active),
                     VNXI_CUDA_ERROR_INVALID_DEVICE);
}

/* -- Memory ----------------------------------------------------------------
 */

static void
cpu_cannot_touch_device_memory(void **state)
{
    vnxi_cu_ptr_t ptr = alloc(4096);
    char byte;
    struct iovec local = {&byte, 1}, remote = {(void *)(uintptr_t)ptr, 1};

    (void)state;
    errno = 0;
    assert_int_equal(process_vm_readv(getpid(), &local, 1, &remote, 1, 0), -1);
    assert_int_equal(errno, EFAULT);
    CU_OK(cu.cuMemFree_v2(ptr));
    child_t child = start_child("load");
    assert_int_not_equal(await_child(&child), 0);
}

static void
copies_move_the_bytes_that_they_name(void **state)
{
    enum { SIZE = 3000000 };
    uint8_t *sent = malloc(SIZE), *got = malloc(SIZE);
    vnxi_cu_ptr_t a = alloc(SIZE), b = alloc(SIZE);
    vnxi_cu_stream_t stream = make_stream();

    (void)state;
    fill(sent, SIZE, 1);
    memset(got, 0, SIZE);
    CU_OK(cu.cuMemcpyHtoDAsync_v2(a, sent, SIZE, stream));
    for (size_t at = 0, len = 1; at < SIZE; at += len, len = len * 2 + 1) {
        len = len < SIZE - at ? len : SIZE - at;
        CU_OK(cu.cuMemcpyDtoDAsync_v2(b + at, a + at, len, stream));
    }
    CU_OK(cu.cuMemcpyDtoHAsync_v2(got, b, SIZE, stream));
    assert_memory_equal(got, sent, SIZE);
    calls->poke(a + 77, "seven", 5);
    CU_OK(client.cuMemcpyDtoH_v2(got, a + 76, 7));
    assert_int_equal(got[0], sent[76]);
    assert_memory_equal(got + 1, "seven", 5);
    assert_int_equal(got[6], sent[82]);
    end_stream(stream);
    CU_OK(cu.cuMemFree_v2(a));
    CU_OK(cu.cuMemFree_v2(b));
    free(sent);
    free(got);
}

static void
attributes_tell_the_kinds_of_memory_apart(void **state)
{
    vnxi_cu_ptr_t plain = alloc(5 * MiB), pool, managed;
    vnxi_cu_ptr_t mapped = reserve(2 * CHUNK);
    static char host[100];

    (void)state;
    map(mapped, CHUNK,
        create(CHUNK, VNXI_CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
    CU_OK(client.cuMemAllocAsync(&pool, 4096, NULL));
    CU_OK(client.cuMemAllocManaged(&managed, 4096, 1));
    *(char *)(uintptr_t)managed = 1; /* the CPU may */
    CU_OK(cu.cuMemHostRegister_v2(host, sizeof host, 0));
    const struct {
        vnxi_cu_ptr_t ptr;
        uint64_t type, is_legacy, handle_types, is_managed, start, size;
    } kinds[] = {
        {plain + 9, 2, 1, 0, 0, plain, 5 * MiB},
        {mapped + 9, 2, 0, 1, 0, mapped, 2 * CHUNK},
        {pool + 9, 2, 0, 0, 0, pool, 4096},
        {managed + 9, 2, 0, 0, 1, managed, 4096},
        {(uintptr_t)host + 9, 1, 0, 0, 0, (uintptr_t)host, sizeof host},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        vnxi_cu_ptr_t p = kinds[i].ptr;
        assert_int_equal(attribute(VNXI_CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p),
                         kinds[i].type);
        assert_int_equal(
            attribute(VNXI_CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, p),
            kinds[i].is_legacy);
        assert_int_equal(
            attribute(VNXI_CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES, p),
            kinds[i].handle_types);
        assert_int_equal(attribute(VNXI_CU_POINTER_ATTRIBUTE_IS_MANAGED, p),
                         kinds[i].is_managed);
        assert_int_equal(
            attribute(VNXI_CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, p),
            kinds[i].start);
        assert_int_equal(attribute(VNXI_CU_POINTER_ATTRIBUTE_RANGE_SIZE, p),
                         kinds[i].size);
        assert_int_equal(attribute(VNXI_CU_POINTER_ATTRIBUTE_MAPPED, p), 1);
        assert_int_equal(
            attribute(VNXI_CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, p), 0);
        assert_int_not_equal(attribute(VNXI_CU_POINTER_ATTRIBUTE_BUFFER_ID, p),
                             0);
    }
    assert_int_equal(attribute(VNXI_CU_POINTER_ATTRIBUTE_CONTEXT, mapped), 0);
    assert_int_equal(attribute(VNXI_CU_POINTER_ATTRIBUTE_CONTEXT, plain),
                     (uintptr_t)context);
    assert_int_not_equal(
        attribute(VNXI_CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE, pool), 0);
    /* A reserved address, and one that CUDA does not know. */
    assert_int_equal(
        attribute(VNXI_CU_POINTER_ATTRIBUTE_MAPPED, mapped + CHUNK), 0);
    assert_int_equal(
        attribute(VNXI_CU_POINTER_ATTRIBUTE_MEMORY_TYPE, mapped + CHUNK),
        VNXI_CU_MEMORYTYPE_DEVICE);
    assert_int_equal(
        attribute(VNXI_CU_POINTER_ATTRIBUTE_MEMORY_TYPE, (uintptr_t)&state),
        0);

    CU_OK(cu.cuMemGetAddressRange_v2(NULL, NULL, pool));
    assert_int_equal(cu.cuMemGetAddressRange_v2(NULL, NULL, managed),
                     VNXI_CUDA_ERROR_NOT_FOUND);

    CU_OK(cu.cuMemHostUnregister(host));
    CU_OK(cu.cuMemFree_v2(managed));
    CU_OK(client.cuMemFreeAsync(pool, NULL));
    CU_OK(client.cuCtxSynchronize());
    CU_OK(cu.cuMemUnmap(mapped, CHUNK));
    CU_OK(cu.cuMemAddressFree(mapped, 2 * CHUNK));
    CU_OK(cu.cuMemFree_v2(plain));
}

static void
addresses_come_back_but_buffer_ids_do_not(void **state)
{
    vnxi_cu_ptr_t first = alloc(3 * MiB);
    uint64_t id = attribute(VNXI_CU_POINTER_ATTRIBUTE_BUFFER_ID, first);

    (void)state;
    CU_OK(cu.cuMemFree_v2(first));
    vnxi_cu_ptr_t second = alloc(3 * MiB);
    assert_int_equal(second, first);
    assert_int_not_equal(
        attribute(VNXI_CU_POINTER_ATTRIBUTE_BUFFER_ID, second), id);
    CU_OK(cu.cuMemFree_v2(second));
    assert_int_equal(cu.cuMemFree_v2(second), VNXI_CUDA_ERROR_INVALID_VALUE);
    expect_misuses(1);
}

static void
address_range_is_that_of_the_allocation(void **state)
{
    vnxi_cu_ptr_t small = alloc(1000), next = alloc(1000), base = 0;
    size_t size = 0;

    (void)state;
    CU_OK(cu.cuMemGetAddressRange_v2(&base, &size, next + 999));
    assert_int_equal(base, next);
    assert_int_equal(size, 1000);
    assert_int_equal(cu.cuMemGetAddressRange_v2(&base, &size, next + 1000),
                     VNXI_CUDA_ERROR_NOT_FOUND);
    CU_OK(cu.cuMemFree_v2(small));
    CU_OK(cu.cuMemFree_v2(next));
    assert_int_equal(fake->fds, 0);
}

static void
mapped_memory_lives_until_its_last_mapping_and_handle(void **state)
{
    vnxi_cu_ptr_t ptr = reserve(3 * CHUNK), base;
    vnxi_cu_mem_t mem = create(CHUNK, 0), same = 0;
    vnxi_cu_alloc_prop_t prop;
    size_t size;
    char got[6] = "";

    (void)state;
    map(ptr + CHUNK, CHUNK, mem); /* the mapping keeps it */
    calls->poke(ptr + CHUNK, "bytes", 6);
    CU_OK(cu.cuMemRetainAllocationHandle(
        &same, (void *)(uintptr_t)(ptr + CHUNK + 5)));
    CU_OK(cu.cuMemGetAllocationPropertiesFromHandle(&prop, same));
    assert_int_equal(prop.requestedHandleTypes, 0);
    CU_OK(cu.cuMemGetAddressRange_v2(&base, &size, ptr + CHUNK + 5));
    assert_int_equal(base, ptr + CHUNK);
    assert_int_equal(size, CHUNK);
    assert_int_equal(cu.cuMemAddressFree(ptr, 3 * CHUNK),
                     VNXI_CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(cu.cuMemUnmap(ptr + CHUNK, CHUNK / 2),
                     VNXI_CUDA_ERROR_INVALID_VALUE);
    expect_misuses(2);
    CU_OK(cu.cuMemUnmap(ptr + CHUNK, CHUNK));
    map(ptr, CHUNK, same); /* the handle kept it */
    calls->peek(ptr, got, 6);
    assert_string_equal(got, "bytes");
    CU_OK(cu.cuMemUnmap(ptr, CHUNK));
    assert_int_equal(fake->fds, 0);
    assert_int_equal(cu.cuMemRelease(same), VNXI_CUDA_ERROR_INVALID_VALUE);
    expect_misuses(1);
    CU_OK(cu.cuMemAddressFree(ptr, 3 * CHUNK));
}

static void
memory_of_chunks_is_copied_across_their_bounds(void **state)
{
    vnxi_cu_ptr_t ptr = reserve(4 * CHUNK);
    uint8_t *sent = malloc(CHUNK), *got = malloc(CHUNK);
    vnxi_cu_stream_t stream = make_stream();

    (void)state;
    for (int i = 0; i < 4; i++) {
        CU_OK(cu.cuMemMap(ptr + i * CHUNK, CHUNK, 0, create(CHUNK, 0), 0));
    }
    CU_OK(cu.cuMemSetAccess(ptr, 4 * CHUNK, &read_write, 1));
    fill(sent, CHUNK, 2);
    calls->poke(ptr + CHUNK / 2, sent, CHUNK);
    CU_OK(cu.cuMemcpyDtoDAsync_v2(ptr + 5 * CHUNK / 2 + 3, ptr + CHUNK / 2,
                                  CHUNK, stream));
    CU_OK(cu.cuStreamSynchronize(stream));
    calls->peek(ptr + 5 * CHUNK / 2 + 3, got, CHUNK);
    assert_memory_equal(got, sent, CHUNK);
    for (int i = 0; i < 4; i++) {
        vnxi_cu_mem_t mem;
        CU_OK(cu.cuMemRetainAllocationHandle(
            &mem, (void *)(uintptr_t)(ptr + i * CHUNK)));
        CU_OK(cu.cuMemRelease(mem));
        CU_OK(cu.cuMemRelease(mem)); /* the first one */
    }
    CU_OK(cu.cuMemUnmap(ptr, 4 * CHUNK));
    CU_OK(cu.cuMemAddressFree(ptr, 4 * CHUNK));
    end_stream(stream);
    free(sent);
    free(got);
}

static void
registered_memory_has_a_device_pointer(void **state)
{
    (void)state;
    for (int alias = 0; alias < 2; alias++) {
        vnxi_cu_ptr_t device = 0, target = alloc(100);
        vnxi_cu_stream_t stream = make_stream();
        char *host = malloc(100), got[100];

        atomic_store(&fake->alias, alias);
        fill((uint8_t *)host, 100, 3);
        CU_OK(cu.cuMemHostRegister_v2(host, 100, 3));
        assert_int_equal(cu.cuMemHostRegister_v2(host + 50, 10, 3),
                         VNXI_CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        CU_OK(cu.cuMemHostGetDevicePointer_v2(&device, host + 1, 0));
        assert_int_equal(device != (uintptr_t)host + 1, alias);
        CU_OK(cu.cuMemcpyDtoDAsync_v2(target, device, 99, stream));
        CU_OK(cu.cuStreamSynchronize(stream));
        calls->peek(target, got, 99);
        assert_memory_equal(got, host + 1, 99);
        CU_OK(cu.cuMemHostUnregister(host));
        assert_int_equal(cu.cuMemHostUnregister(host),
                         VNXI_CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
        expect_misuses(1);
        end_stream(stream);
        CU_OK(cu.cuMemFree_v2(target));
        free(host);
    }
    atomic_store(&fake->alias, 0);
}

static void
host_memory_must_be_unregistered_before_it_is_unmapped(void **state)
{
    void *host = mmap(NULL, 8192, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    (void)state;
    CU_OK(cu.cuMemHostRegister_v2(host, 8192, 0));
    munmap(host, 8192);
    CU_OK(cu.cuMemHostUnregister(host));
    expect_misuses(1);
}

/* -- Streams and events ----------------------------------------------------
 */

static void
streams_work_after_the_call_and_in_order(void **state)
{
    vnxi_cu_ptr_t ptr = alloc(100);
    vnxi_cu_stream_t stream = make_stream();
    vnxi_cu_event_t event;
    char got = 0;

    (void)state;
    CU_OK(cu.cuEventCreate(&event, VNXI_CU_EVENT_DISABLE_TIMING));
    CU_OK(cu.cuEventQuery(event)); /* was never recorded */
    calls->hold(true);
    CU_OK(client.cuMemsetD8Async(ptr, 1, 100, stream));
    CU_OK(client.cuMemsetD8Async(ptr, 2, 100, stream));
    CU_OK(cu.cuEventRecord(event, stream));
    assert_int_equal(cu.cuEventQuery(event), VNXI_CUDA_ERROR_NOT_READY);
    assert_int_equal(cu.cuStreamQuery(stream), VNXI_CUDA_ERROR_NOT_READY);
    calls->peek(ptr, &got, 1);
    assert_int_equal(got, 0);
    calls->hold(false);
    AWAIT(cu.cuEventQuery(event) == VNXI_CUDA_SUCCESS);
    calls->peek(ptr + 99, &got, 1);
    assert_int_equal(got, 2);
    CU_OK(cu.cuEventDestroy_v2(event));
    assert_int_equal(cu.cuEventDestroy_v2(event),
                     VNXI_CUDA_ERROR_INVALID_HANDLE);
    end_stream(stream);
    assert_int_equal(cu.cuStreamQuery(stream), VNXI_CUDA_ERROR_INVALID_HANDLE);
    expect_misuses(2);
    CU_OK(cu.cuMemFree_v2(ptr));
}

static void
delays_change_no_result(void **state)
{
    enum { COUNT = 200 };
    vnxi_cu_ptr_t ptr = alloc(COUNT);
    vnxi_cu_stream_t streams[3];
    uint8_t got[COUNT];

    (void)state;
    atomic_store(&fake->delay_us, 200);
    for (int i = 0; i < 3; i++) {
        streams[i] = make_stream();
    }
    for (int i = 0; i < COUNT; i++) {
        CU_OK(client.cuMemsetD8Async(ptr + i, 0xff, 1, streams[i % 3]));
        CU_OK(client.cuMemsetD8Async(ptr + i, (unsigned char)i, 1,
                                     streams[i % 3]));
    }
    for (int i = 0; i < 3; i++) {
        CU_OK(cu.cuStreamSynchronize(streams[i]));
        CU_OK(cu.cuStreamDestroy_v2(streams[i]));
    }
    atomic_store(&fake->delay_us, 0);
    calls->peek(ptr, got, COUNT);
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(got[i], i);
    }
    CU_OK(cu.cuMemFree_v2(ptr));
}

typedef struct visit {
    vnxi_cu_ptr_t ptr;
    pthread_t thread;
    vnxi_cu_result_t result;
    char byte;
    atomic_bool happened;
} visit_t;

static void
visit(void *arg)
{
    visit_t *visit = arg;
    int version;

    visit->thread = pthread_self();
    visit->result = cu.cuDriverGetVersion(&version);
    calls->peek(visit->ptr, &visit->byte, 1);
    atomic_store(&visit->happened, true);
}

static void
host_function_runs_elsewhere_after_the_work_and_may_not_call_cuda(void **state)
{
    visit_t seen = {.ptr = alloc(1)};
    vnxi_cu_stream_t stream = make_stream();

    (void)state;
    CU_OK(client.cuMemsetD8Async(seen.ptr, 7, 1, stream));
    CU_OK(cu.cuLaunchHostFunc(stream, visit, &seen));
    AWAIT(atomic_load(&seen.happened));
    assert_int_equal(seen.byte, 7);
    assert_false(pthread_equal(seen.thread, pthread_self()));
    assert_int_equal(seen.result, VNXI_CUDA_ERROR_NOT_PERMITTED);
    expect_misuses(1);
    end_stream(stream);
    CU_OK(cu.cuMemFree_v2(seen.ptr));
}

static void
pinned_memory_is_read_later_and_pageable_memory_at_once(void **state)
{
    static char pinned[10], pageable[10];
    vnxi_cu_ptr_t ptr = alloc(20);
    vnxi_cu_stream_t stream = make_stream();
    char got[20];
    int before = fake->pageable;

    (void)state;
    CU_OK(cu.cuMemHostRegister_v2(pinned, sizeof pinned, 0));
    memset(pinned, 1, 10);
    memset(pageable, 1, 10);
    calls->hold(true);
    CU_OK(cu.cuMemcpyHtoDAsync_v2(ptr, pinned, 10, stream));
    CU_OK(cu.cuMemcpyHtoDAsync_v2(ptr + 10, pageable, 10, stream));
    memset(pageable, 2, 10);
    calls->hold(false);
    CU_OK(cu.cuMemcpyDtoHAsync_v2(got, ptr, 20, stream)); /* waits */
    assert_int_equal(got[0], 1);
    assert_int_equal(got[19], 1);
    assert_int_equal(fake->pageable - before, 2);
    CU_OK(cu.cuMemHostUnregister(pinned));
    end_stream(stream);
    CU_OK(cu.cuMemFree_v2(ptr));
}

static void
null_stream_and_blocking_streams_wait_for_each_other(void **state)
{
    vnxi_cu_ptr_t ptr = alloc(1);
    vnxi_cu_stream_t stream = NULL;
    char got = 0;

    (void)state;
    CU_OK(cu.cuStreamCreateWithPriority(&stream, 0, 0));
    atomic_store(&fake->delay_us, 300);
    for (unsigned char i = 1; i <= 50; i++) {
        CU_OK(client.cuMemsetD8Async(ptr, i, 1, i % 2 ? stream : NULL));
    }
    CU_OK(client.cuCtxSynchronize());
    atomic_store(&fake->delay_us, 0);
    calls->peek(ptr, &got, 1);
    assert_int_equal(got, 50);
    end_stream(stream);
    CU_OK(cu.cuMemFree_v2(ptr));
}

static void
stream_writes_a_value_after_its_work(void **state)
{
    static _Atomic uint32_t flag;
    vnxi_cu_ptr_t ptr = alloc(1);
    vnxi_cu_stream_t stream = make_stream();
    char got = 0;

    (void)state;
    atomic_store(&flag, 0);
    CU_OK(cu.cuMemHostRegister_v2((void *)(uintptr_t)&flag, sizeof flag, 0));
    CU_OK(client.cuMemsetD8Async(ptr, 5, 1, stream));
    CU_OK(cu.cuStreamWriteValue32_v2(stream, (uintptr_t)&flag, 17, 0));
    AWAIT(atomic_load(&flag) == 17);
    calls->peek(ptr, &got, 1);
    assert_int_equal(got, 5);
    end_stream(stream);
    CU_OK(cu.cuMemHostUnregister((void *)(uintptr_t)&flag));
    CU_OK(cu.cuMemFree_v2(ptr));
}

static void
count_visit(void *counter)
{
    atomic_fetch_add((atomic_int *)counter, 1);
}

/* One of several threads with a stream and memory of its own. */
static void *
work(void *seed)
{
    enum { ROUNDS = 40, SIZE = 20000 };
    uint8_t sent[SIZE], got[SIZE];
    atomic_int visits = 0;
    vnxi_cu_event_t event;

    CU_OK(cu.cuCtxPushCurrent_v2(context));
    vnxi_cu_stream_t stream = make_stream();
    CU_OK(cu.cuEventCreate(&event, VNXI_CU_EVENT_DISABLE_TIMING));
    for (int i = 0; i < ROUNDS; i++) {
        vnxi_cu_ptr_t a = alloc(SIZE), b = alloc(SIZE);
        fill(sent, SIZE, (uintptr_t)seed + (unsigned)i);
        CU_OK(cu.cuMemcpyHtoDAsync_v2(a, sent, SIZE, stream));
        CU_OK(cu.cuMemcpyDtoDAsync_v2(b, a, SIZE, stream));
        CU_OK(cu.cuLaunchHostFunc(stream, count_visit, &visits));
        CU_OK(cu.cuEventRecord(event, stream));
        AWAIT(cu.cuEventQuery(event) == VNXI_CUDA_SUCCESS);
        assert_int_equal(atomic_load(&visits), i + 1);
        calls->peek(b, got, SIZE);
        assert_memory_equal(got, sent, SIZE);
        CU_OK(cu.cuMemFree_v2(a));
        CU_OK(cu.cuMemFree_v2(b));
    }
    CU_OK(cu.cuEventDestroy_v2(event));
    CU_OK(cu.cuStreamDestroy_v2(stream));
    CU_OK(cu.cuCtxPopCurrent_v2(NULL));
    return NULL;
}

static void
threads_work_at_the_same_time(void **state)
{
    pthread_t threads[4];

    (void)state;
    atomic_store(&fake->delay_us, 20);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, work,
                                        (void *)(uintptr_t)(i * 1000)),
                         0);
    }
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
    atomic_store(&fake->delay_us, 0);
}

/* -- Kernel and batch ------------------------------------------------------
 */

static void
kernel_copies_the_rows_of_its_table(void **state)
{
    enum { COUNT = 300, SIZE = 100000 };
    vnxi_cu_module_t module;
    vnxi_cu_function_t function = load_kernel(&module);
    vnxi_cu_ptr_t src = alloc(SIZE), dst = alloc(SIZE);
    vnxi_cu_ptr_t table = alloc(COUNT * sizeof(row_t));
    vnxi_cu_stream_t stream = make_stream();
    uint8_t *sent = malloc(SIZE), *want = calloc(1, SIZE), *got = malloc(SIZE);
    row_t rows[COUNT];
    size_t at = 0;

    (void)state;
    fill(sent, SIZE, 4);
    calls->poke(src, sent, SIZE);
    for (size_t i = 0; i < COUNT; i++) {
        size_t len = i * 7 % 331, from = i * 7919 % (SIZE - 331);
        rows[i] = (row_t){src + from, dst + at, len, 0};
        memcpy(want + at, sent + from, len);
        at += len + i % 3;
    }
    assert_true(at < SIZE);
    CU_OK(launch(function, table, 0, stream));
    CU_OK(cu.cuMemcpyHtoDAsync_v2(table, rows, sizeof rows, stream));
    CU_OK(launch(function, table, COUNT, stream));
    CU_OK(cu.cuStreamSynchronize(stream));
    calls->peek(dst, got, SIZE);
    assert_memory_equal(got, want, SIZE);
    assert_int_equal(fake->largest_grid, 16);
    assert_true(fake->largest_launch > 0);
    void *params[] = {NULL, NULL};
    assert_int_equal(cu.cuLaunchKernel(function, 1, 1, 1, 48, 1, 1, 0, stream,
                                       params, NULL),
                     VNXI_CUDA_ERROR_INVALID_VALUE);
    expect_misuses(1);
    CU_OK(cu.cuModuleUnload(module));
    end_stream(stream);
    CU_OK(cu.cuMemFree_v2(table));
    CU_OK(cu.cuMemFree_v2(src));
    CU_OK(cu.cuMemFree_v2(dst));
    free(sent);
    free(want);
    free(got);
}

static void
kernel_reads_rows_in_registered_memory(void **state)
{
    static row_t row __attribute__((aligned(16)));
    vnxi_cu_module_t module;
    vnxi_cu_function_t function = load_kernel(&module);
    vnxi_cu_ptr_t src = alloc(10), dst = alloc(10);
    vnxi_cu_stream_t stream = make_stream();
    char got[6] = "";

    (void)state;
    row = (row_t){src + 1, dst + 3, 6, 0};
    CU_OK(cu.cuMemHostRegister_v2(&row, sizeof row, 0));
    calls->poke(src + 1, "bytes", 6);
    CU_OK(launch(function, (uintptr_t)&row, 1, stream));
    CU_OK(cu.cuStreamSynchronize(stream));
    calls->peek(dst + 3, got, 6);
    assert_string_equal(got, "bytes");
    CU_OK(cu.cuMemHostUnregister(&row));
    CU_OK(cu.cuModuleUnload(module));
    end_stream(stream);
    CU_OK(cu.cuMemFree_v2(src));
    CU_OK(cu.cuMemFree_v2(dst));
}

static void
missing_compiler_leaves_a_log(void **state)
{
    static const int codes[] = {
        VNXI_CUDA_ERROR_JIT_COMPILER_NOT_FOUND,
        VNXI_CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
    };
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        vnxi_cu_module_t module;
        char log[100] = "";
        vnxi_cu_enum_t options[] = {VNXI_CU_JIT_ERROR_LOG_BUFFER,
                                    VNXI_CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
        void *values[] = {log, (void *)(uintptr_t)sizeof log};
        calls->refuse("cuModuleLoadDataEx", codes[i]);
        assert_int_equal(
            cu.cuModuleLoadDataEx(&module, ptx, 2, options, values), codes[i]);
        assert_true(strlen(log) > 0);
    }
    calls->refuse("cuModuleLoadDataEx", 0);
    vnxi_cu_module_t module;
    CU_OK(cu.cuModuleLoadDataEx(&module, ptx, 0, NULL, NULL));
    vnxi_cu_function_t function;
    assert_int_equal(cu.cuModuleGetFunction(&function, module, "other"),
                     VNXI_CUDA_ERROR_NOT_FOUND);
    CU_OK(cu.cuModuleUnload(module));
    assert_int_equal(cu.cuModuleLoadDataEx(&module, "text", 0, NULL, NULL),
                     VNXI_CUDA_ERROR_INVALID_IMAGE);
}

static void
batch_copies_all_but_not_in_the_null_stream(void **state)
{
    enum { COUNT = 50 };
    vnxi_cu_ptr_t src = alloc(COUNT * 10), dst = alloc(COUNT * 10);
    vnxi_cu_ptr_t to[COUNT], from[COUNT];
    size_t sizes[COUNT], starts[] = {0}, failed = 0;
    vnxi_cu_copy_attr_t attrs = {.srcAccessOrder =
                                     VNXI_CU_MEMCPY_SRC_ACCESS_ORDER_STREAM};
    vnxi_cu_stream_t stream = make_stream();
    uint8_t sent[COUNT * 10], got[COUNT * 10];
    int before = fake->copies;

    (void)state;
    fill(sent, sizeof sent, 5);
    calls->poke(src, sent, sizeof sent);
    for (size_t i = 0; i < COUNT; i++) {
        to[i] = dst + i * 10;
        from[i] = src + (COUNT - 1 - i) * 10;
        sizes[i] = 10;
    }
    assert_int_equal(cu.cuMemcpyBatchAsync(to, from, sizes, COUNT, &attrs,
                                           starts, 1, &failed, NULL),
                     VNXI_CUDA_ERROR_INVALID_VALUE);
    CU_OK(cu.cuMemcpyBatchAsync(to, from, sizes, COUNT, &attrs, starts, 1,
                                &failed, stream));
    memset(to, 0, sizeof to); /* arrays are read during the call */
    CU_OK(cu.cuStreamSynchronize(stream));
    calls->peek(dst, got, sizeof got);
    for (size_t i = 0; i < COUNT; i++) {
        assert_memory_equal(got + i * 10, sent + (COUNT - 1 - i) * 10, 10);
    }
    assert_int_equal(fake->copies - before, 1);
    end_stream(stream);
    CU_OK(cu.cuMemFree_v2(src));
    CU_OK(cu.cuMemFree_v2(dst));
}

/* -- Other processes -------------------------------------------------------
 */

/* The child opens what it is told of, checks a word in it, writes another
 * word, and ends the mapping when the test says so. */
typedef enum way { BY_LEGACY, BY_FD, BY_FABRIC, BY_POOL } way_t;

typedef struct offer {
    way_t way;
    size_t size, offset;
    vnxi_cu_ipc_handle_t handle;
} offer_t;

static void
offer_to(child_t *child, way_t way, vnxi_cu_ptr_t ptr, size_t size, int fd,
         const void *handle)
{
    offer_t offer = {.way = way, .size = size, .offset = size / 2};
    char answer[5] = "", word[5] = "";

    if (handle != NULL) {
        memcpy(&offer.handle, handle, sizeof offer.handle);
    }
    calls->poke(ptr + offer.offset, "ours", 5);
    send_to(child->socket, &offer, sizeof offer, fd);
    if (fd >= 0) {
        close(fd);
    }
    receive_from(child->socket, answer, sizeof answer);
    assert_string_equal(answer, "open");
    calls->peek(ptr + offer.offset, word, sizeof word);
    assert_string_equal(word, "peer");
    assert_true(calls->shared(ptr));
}

static void
end_offer(child_t *child, vnxi_cu_ptr_t ptr)
{
    char answer[5];

    send_to(child->socket, "shut", 5, -1);
    receive_from(child->socket, answer, sizeof answer);
    assert_false(calls->shared(ptr));
}

/* A handle that is open opens at the same address, or, with older drivers,
 * not at all. */
static void
open_again(const offer_t *offer, vnxi_cu_ptr_t ptr)
{
    vnxi_cu_ptr_t again = 0;

    assert_int_equal(cu.cuIpcOpenMemHandle_v2(&again, offer->handle, 0),
                     VNXI_CUDA_ERROR_INVALID_VALUE);
    CU_OK(cu.cuIpcOpenMemHandle_v2(&again, offer->handle, 1));
    assert_int_equal(again, ptr);
    CU_OK(cu.cuIpcCloseMemHandle(again));
    atomic_store(&fake->old_ipc, 1);
    assert_int_equal(cu.cuIpcOpenMemHandle_v2(&again, offer->handle, 1),
                     VNXI_CUDA_ERROR_ALREADY_MAPPED);
    atomic_store(&fake->old_ipc, 0);
}

static vnxi_cu_ptr_t
open_offer(const offer_t *offer, int fd, vnxi_cu_pool_t *pool_p)
{
    void *handle =
        offer->way == BY_FD ? (void *)(intptr_t)fd : (void *)&offer->handle;
    vnxi_cu_ptr_t ptr = 0;
    vnxi_cu_mem_t mem;

    switch (offer->way) {
    case BY_LEGACY:
        CU_OK(cu.cuIpcOpenMemHandle_v2(&ptr, offer->handle, 1));
        open_again(offer, ptr);
        break;
    case BY_POOL:
        CU_OK(cu.cuMemPoolImportFromShareableHandle(
            pool_p, (void *)(intptr_t)fd, 1, 0));
        CU_OK(cu.cuMemPoolSetAccess(*pool_p, &read_write, 1));
        CU_OK(cu.cuMemPoolImportPointer(
            &ptr, *pool_p, (vnxi_cu_pool_ptr_t *)(void *)&offer->handle));
        break;
    case BY_FD:
    case BY_FABRIC:
        CU_OK(cu.cuMemImportFromShareableHandle(&mem, handle,
                                                offer->way == BY_FD ? 1 : 8));
        ptr = reserve(offer->size);
        map(ptr, offer->size, mem);
        break;
    }
    if (fd >= 0) {
        close(fd);
    }
    return ptr;
}

static void
close_offer(const offer_t *offer, vnxi_cu_ptr_t ptr, vnxi_cu_pool_t pool)
{
    switch (offer->way) {
    case BY_LEGACY:
        CU_OK(cu.cuIpcCloseMemHandle(ptr));
        assert_int_equal(cu.cuIpcCloseMemHandle(ptr),
                         VNXI_CUDA_ERROR_INVALID_VALUE);
        expect_misuses(1);
        break;
    case BY_POOL:
        CU_OK(cu.cuMemFree_v2(ptr));
        CU_OK(cu.cuMemPoolDestroy(pool));
        break;
    case BY_FD:
    case BY_FABRIC:
        CU_OK(cu.cuMemUnmap(ptr, offer->size));
        CU_OK(cu.cuMemAddressFree(ptr, offer->size));
        break;
    }
}

static void
scene_import(int socket)
{
    offer_t offer;
    char word[5];
    vnxi_cu_pool_t pool = NULL;

    for (;;) { /* offers */
        int fd = receive_from(socket, &offer, sizeof offer);
        if (offer.size == 0) {
            return;
        }
        vnxi_cu_ptr_t ptr = open_offer(&offer, fd, &pool);
        CU_OK(client.cuMemcpyDtoH_v2(word, ptr + offer.offset, 5));
        assert_string_equal(word, "ours");
        CU_OK(client.cuMemcpyHtoD_v2(ptr + offer.offset, "peer", 5));
        send_to(socket, "open", 5, -1);
        receive_from(socket, word, sizeof word);
        close_offer(&offer, ptr, pool);
        send_to(socket, "shut", 5, -1);
    }
}

static void
end_importer(child_t *child)
{
    offer_t end = {.size = 0};
    send_to(child->socket, &end, sizeof end, -1);
    assert_int_equal(await_child(child), 0);
}

static void
legacy_handles_open_in_another_process(void **state)
{
    child_t child = start_child("import");
    const size_t sizes[] = {1000, 3 * MiB};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        vnxi_cu_ptr_t before = alloc(sizes[i]), ptr = alloc(sizes[i]), own;
        vnxi_cu_ipc_handle_t handle;
        CU_OK(cu.cuIpcGetMemHandle(&handle, ptr + 1));
        assert_int_equal(cu.cuIpcOpenMemHandle_v2(&own, handle, 1),
                         VNXI_CUDA_ERROR_INVALID_CONTEXT);
        offer_to(&child, BY_LEGACY, ptr, sizes[i], -1, &handle);
        end_offer(&child, ptr);
        CU_OK(cu.cuMemFree_v2(ptr));
        CU_OK(cu.cuMemFree_v2(before));
    }
    vnxi_cu_ptr_t ptr = alloc(3 * MiB);
    vnxi_cu_ipc_handle_t handle;
    CU_OK(cu.cuIpcGetMemHandle(&handle, ptr));
    offer_to(&child, BY_LEGACY, ptr, 3 * MiB, -1, &handle);
    int before = fake->freed_while_open;
    CU_OK(cu.cuMemFree_v2(ptr));
    assert_int_equal(fake->freed_while_open - before, 1);
    send_to(child.socket, "shut", 5, -1);
    char answer[5];
    receive_from(child.socket, answer, sizeof answer);
    end_importer(&child);
}

static void
importer_may_know_the_gpu_by_another_number_or_not_at_all(void **state)
{
    static const char *const worlds[] = {"devices=2,uuids=10", "uuids=7"};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        setenv("FAKE_CUDA", worlds[i], 1);
        child_t child = start_child("import");
        unsetenv("FAKE_CUDA");
        vnxi_cu_ptr_t ptr = alloc(CHUNK);
        vnxi_cu_ipc_handle_t handle;
        CU_OK(cu.cuIpcGetMemHandle(&handle, ptr));
        offer_to(&child, BY_LEGACY, ptr, CHUNK, -1, &handle);
        end_offer(&child, ptr);
        end_importer(&child);
        CU_OK(cu.cuMemFree_v2(ptr));
    }
}

static void
descriptors_and_fabric_handles_import_in_another_process(void **state)
{
    child_t child;

    (void)state;
    setenv("FAKE_CUDA", "fabric=1", 1);
    child = start_child("import");
    unsetenv("FAKE_CUDA");
    atomic_store(&fake->fabric, FAKE_CUDA_FABRIC);
    for (int round = 0; round < 2; round++) {
        unsigned type = round == 0
                            ? VNXI_CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
                            : VNXI_CU_MEM_HANDLE_TYPE_FABRIC;
        vnxi_cu_ptr_t ptr = reserve(CHUNK);
        vnxi_cu_mem_t mem = create(CHUNK, type);
        vnxi_cu_fabric_handle_t handle;
        int fd = -1;
        CU_OK(cu.cuMemExportToShareableHandle(
            round == 0 ? (void *)&fd : (void *)&handle, mem, type, 0));
        map(ptr, CHUNK, mem);
        assert_int_equal(calls->shared(ptr), round == 0); /* by fd */
        offer_to(&child, round == 0 ? BY_FD : BY_FABRIC, ptr, CHUNK, fd,
                 round == 0 ? NULL : &handle);
        end_offer(&child, ptr);
        CU_OK(cu.cuMemUnmap(ptr, CHUNK));
        CU_OK(cu.cuMemAddressFree(ptr, CHUNK));
    }
    end_importer(&child);
    atomic_store(&fake->fabric, FAKE_CUDA_NO_FABRIC);
    assert_int_equal(fake->fds, 0);
}

static void
pool_memory_is_shared_by_its_pool(void **state)
{
    child_t child = start_child("import");
    vnxi_cu_pool_t pool;
    vnxi_cu_pool_ptr_t data;
    vnxi_cu_ptr_t ptr;
    struct {
        vnxi_cu_alloc_prop_t front; /* likewise with the location third */
        char rest[64];
    } props = {.front =
                   properties(VNXI_CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)};
    int fd = -1;

    (void)state;
    char word[5];
    CU_OK(client.cuMemPoolCreate(&pool, &props));
    CU_OK(client.cuMemAllocFromPoolAsync(&ptr, 9000, pool, NULL));
    CU_OK(cu.cuMemPoolExportToShareableHandle(&fd, pool, 1, 0));
    CU_OK(cu.cuMemPoolExportPointer(&data, ptr));
    offer_to(&child, BY_POOL, ptr, 9000, fd, &data);
    end_offer(&child, ptr);
    end_importer(&child);
    calls->peek(ptr + 4500, word, 5);
    assert_string_equal(word, "peer");
    CU_OK(cu.cuMemFree_v2(ptr));
    CU_OK(cu.cuMemPoolDestroy(pool));
}

static void
memory_outlives_its_exporter_and_death_ends_a_mapping(void **state)
{
    child_t child = start_child("import");
    vnxi_cu_ptr_t ptr = reserve(CHUNK);
    vnxi_cu_mem_t mem = create(CHUNK, 1);
    int fd = -1;

    (void)state;
    CU_OK(cu.cuMemExportToShareableHandle(&fd, mem, 1, 0));
    map(ptr, CHUNK, mem);
    offer_to(&child, BY_FD, ptr, CHUNK, fd, NULL);
    assert_true(calls->shared(ptr));
    kill(child.pid, SIGKILL);
    assert_int_equal(await_child(&child), SIGKILL);
    assert_false(calls->shared(ptr));
    CU_OK(cu.cuMemUnmap(ptr, CHUNK));
    CU_OK(cu.cuMemAddressFree(ptr, CHUNK));
}

static void
export_is_refused_where_the_driver_refuses_it(void **state)
{
    vnxi_cu_alloc_prop_t fabric = properties(VNXI_CU_MEM_HANDLE_TYPE_FABRIC);
    vnxi_cu_mem_t mem = create(CHUNK, 0), other;
    vnxi_cu_ptr_t ptr = reserve(CHUNK);
    vnxi_cu_ipc_handle_t handle;
    int fd = -1, value = -1;

    (void)state;
    map(ptr, CHUNK, mem);
    CU_OK(cu.cuMemRetainAllocationHandle(&mem, (void *)(uintptr_t)ptr));
    assert_int_equal(cu.cuMemExportToShareableHandle(&fd, mem, 1, 0),
                     VNXI_CUDA_ERROR_INVALID_VALUE);
    CU_OK(cu.cuMemRelease(mem));
    assert_int_equal(cu.cuIpcGetMemHandle(&handle, ptr),
                     VNXI_CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(cu.cuMemCreate(&other, CHUNK, &fabric, 0),
                     VNXI_CUDA_ERROR_NOT_SUPPORTED);
    atomic_store(&fake->fabric, FAKE_CUDA_FABRIC_WITHOUT_CHANNEL);
    CU_OK(cu.cuDeviceGetAttribute(
        &value, VNXI_CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED, 0));
    assert_int_equal(value, 1);
    assert_int_equal(cu.cuMemCreate(&other, CHUNK, &fabric, 0),
                     VNXI_CUDA_ERROR_NOT_PERMITTED);
    atomic_store(&fake->fabric, FAKE_CUDA_NO_FABRIC);
    CU_OK(cu.cuMemUnmap(ptr, CHUNK));
    CU_OK(cu.cuMemAddressFree(ptr, CHUNK));
}

/* -- Failures --------------------------------------------------------------
 */

static void
capture_forbids_unsafe_calls_of_threads_that_are_not_relaxed(void **state)
{
    vnxi_cu_enum_t mode = VNXI_CU_STREAM_CAPTURE_MODE_RELAXED;
    vnxi_cu_ptr_t ptr = 0;

    (void)state;
    atomic_store(&fake->capturing, 1);
    assert_int_equal(cu.cuMemAlloc_v2(&ptr, 10),
                     VNXI_CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    assert_int_equal(atomic_exchange(&fake->captures_broken, 0), 1);
    CU_OK(cu.cuThreadExchangeStreamCaptureMode(&mode));
    assert_int_equal(mode, VNXI_CU_STREAM_CAPTURE_MODE_GLOBAL);
    CU_OK(cu.cuMemAlloc_v2(&ptr, 10));
    CU_OK(cu.cuMemFree_v2(ptr));
    CU_OK(cu.cuThreadExchangeStreamCaptureMode(&mode));
    assert_int_equal(mode, VNXI_CU_STREAM_CAPTURE_MODE_RELAXED);
    atomic_store(&fake->capturing, 0);
}

static void *
ask_stream_elsewhere(void *stream)
{
    CU_OK(client.cuCtxSetCurrent(context));
    assert_int_equal(cu.cuStreamQuery(stream),
                     VNXI_CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    CU_OK(client.cuCtxSetCurrent(NULL));
    return NULL;
}

/* What is captured is not done, and an unsafe call of any thread ends it. */
static void
captured_work_is_counted_and_an_unsafe_call_ends_the_capture(void **state)
{
    vnxi_cu_stream_t stream = make_stream(), other = make_stream();
    vnxi_cu_ptr_t ptr = alloc(16);
    unsigned char byte = 7;
    void *graph = NULL;
    pthread_t thread;
    size_t nodes = 0;

    (void)state;
    CU_OK(client.cuMemcpyHtoD_v2(ptr, &byte, 1));
    CU_OK(client.cuStreamBeginCapture_v2(stream, 0));
    CU_OK(client.cuMemsetD8Async(ptr, 1, 1, stream));
    CU_OK(client.cuMemsetD8Async(ptr, 2, 1, stream));
    CU_OK(client.cuStreamEndCapture(stream, &graph));
    CU_OK(client.cuGraphGetNodes(graph, NULL, &nodes));
    assert_int_equal(nodes, 2);
    CU_OK(client.cuGraphDestroy(graph));
    CU_OK(client.cuMemcpyDtoH_v2(&byte, ptr, 1));
    assert_int_equal(byte, 7);

    CU_OK(client.cuStreamBeginCapture_v2(stream, 0));
    assert_int_equal(
        pthread_create(&thread, NULL, ask_stream_elsewhere, other), 0);
    pthread_join(thread, NULL);
    assert_int_equal(client.cuStreamEndCapture(stream, &graph), 901);
    assert_null(graph);
    assert_int_equal(atomic_exchange(&fake->captures_broken, 0), 1);
    CU_OK(cu.cuMemFree_v2(ptr));
    end_stream(stream);
    end_stream(other);
}

static void
free_memory_is_told(void **state)
{
    size_t before, after, total;
    (void)state;

    CU_OK(client.cuMemGetInfo_v2(&before, &total));
    vnxi_cu_ptr_t ptr = alloc(5 * MiB);
    CU_OK(client.cuMemGetInfo_v2(&after, &total));
    assert_int_equal(before - after, 5 * MiB);
    CU_OK(cu.cuMemFree_v2(ptr));
    CU_OK(client.cuMemGetInfo_v2(&after, &total));
    assert_int_equal(after, before);
}

static void
device_error_stays_and_drops_the_work(void **state)
{
    visit_t seen = {.ptr = alloc(4)};
    vnxi_cu_stream_t stream = make_stream();
    vnxi_cu_event_t event;
    char got[4] = "";

    (void)state;
    CU_OK(cu.cuEventCreate(&event, 0));
    calls->hold(true);
    atomic_store(&fake->fail_after, 2);
    for (unsigned i = 0; i < 4; i++) {
        CU_OK(client.cuMemsetD8Async(seen.ptr + i, 9, 1, stream));
    }
    CU_OK(cu.cuLaunchHostFunc(stream, visit, &seen));
    CU_OK(cu.cuEventRecord(event, stream));
    calls->hold(false);
    AWAIT(cu.cuEventQuery(event) != VNXI_CUDA_ERROR_NOT_READY);
    assert_int_equal(cu.cuEventQuery(event), VNXI_CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_int_equal(cu.cuStreamSynchronize(stream),
                     VNXI_CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_int_equal(cu.cuEventDestroy_v2(event),
                     VNXI_CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_int_equal(cu.cuStreamDestroy_v2(stream),
                     VNXI_CUDA_ERROR_ILLEGAL_ADDRESS);
    client.cuCtxSynchronize();
    calls->peek(seen.ptr, got, 4);
    assert_int_equal(got[0], 9);
    assert_int_equal(got[1], 0);
    calls->break_contexts(0);
    CU_OK(client.cuCtxSynchronize());
    assert_false(atomic_load(&seen.happened));
    CU_OK(cu.cuMemFree_v2(seen.ptr));
}

static void
devices_reach_each_other_if_they_are_peers(void **state)
{
    vnxi_cu_context_t far;
    vnxi_cu_uuid_t uuids[2];
    int can = -1;

    (void)state;
    atomic_store(&fake->devices, 2);
    CU_OK(cu.cuDeviceGetUuid_v2(&uuids[0], 0));
    CU_OK(cu.cuDeviceGetUuid_v2(&uuids[1], 1));
    assert_memory_not_equal(&uuids[0], &uuids[1], sizeof uuids[0]);
    CU_OK(cu.cuDeviceCanAccessPeer(&can, 0, 1));
    assert_int_equal(can, 1);
    CU_OK(cu.cuDevicePrimaryCtxRetain(&far, 1));
    CU_OK(cu.cuCtxPushCurrent_v2(far));
    vnxi_cu_ptr_t there = alloc(100);
    CU_OK(cu.cuCtxPopCurrent_v2(NULL));
    vnxi_cu_ptr_t here = alloc(100);
    vnxi_cu_stream_t stream = make_stream();
    calls->poke(there, "there", 6);
    CU_OK(cu.cuMemcpyDtoDAsync_v2(here, there, 6, stream));
    end_stream(stream);
    char got[6] = "";
    calls->peek(here, got, 6);
    assert_string_equal(got, "there");
    CU_OK(cu.cuMemFree_v2(here));
    CU_OK(cu.cuMemFree_v2(there));

    atomic_store(&fake->no_peers, 1);
    CU_OK(cu.cuDeviceCanAccessPeer(&can, 0, 1));
    assert_int_equal(can, 0);
    assert_int_equal(cu.cuCtxEnablePeerAccess(far, 0),
                     VNXI_CUDA_ERROR_PEER_ACCESS_UNSUPPORTED);
    CU_OK(cu.cuCtxPushCurrent_v2(far));
    CU_OK(client.cuMemAllocAsync(&there, 100, NULL));
    CU_OK(cu.cuCtxPopCurrent_v2(NULL));
    here = alloc(100);
    stream = make_stream();
    calls->poke(there, "other", 6);
    assert_int_equal(
        cu.cuMemcpyPeerAsync(here, context, there, NULL, 6, stream),
        VNXI_CUDA_ERROR_INVALID_CONTEXT);
    CU_OK(cu.cuMemcpyPeerAsync(here, context, there, far, 6, stream));
    CU_OK(cu.cuMemcpyPeerAsync(there + 6, far, here, context, 6, stream));
    end_stream(stream);
    calls->peek(here, got, 6);
    assert_string_equal(got, "other");
    calls->peek(there + 6, got, 6);
    assert_string_equal(got, "other");
    CU_OK(cu.cuMemFree_v2(here));
    CU_OK(cu.cuMemFree_v2(there));
    atomic_store(&fake->no_peers, 0);
    CU_OK(cu.cuDevicePrimaryCtxRelease_v2(1));
    atomic_store(&fake->devices, 1);
}

static void
calls_are_counted_and_refused_by_name(void **state)
{
    int before = calls->count("cuDriverGetVersion"), all = fake->calls;
    int version = 0;

    (void)state;
    calls->refuse("cuDriverGetVersion", 999);
    assert_int_equal(cu.cuDriverGetVersion(&version), 999);
    calls->refuse("cuDriverGetVersion", 0);
    CU_OK(cu.cuDriverGetVersion(&version));
    assert_int_equal(version, 12080);
    assert_int_equal(calls->count("cuDriverGetVersion") - before, 2);
    assert_int_equal(fake->calls - all, 2);
}

static void
exit_of_the_process_ends_the_driver(void **state)
{
    int version, active;
    unsigned flags;

    (void)state;
    atomic_store(&fake->exited, 1);
    assert_int_equal(cu.cuDevicePrimaryCtxGetState(0, &flags, &active),
                     VNXI_CUDA_ERROR_DEINITIALIZED);
    assert_int_equal(cu.cuDriverGetVersion(&version),
                     VNXI_CUDA_ERROR_DEINITIALIZED);
    atomic_store(&fake->exited, 0);
}

static void
report_counts_what_lives(void **state)
{
    vnxi_cu_stream_t stream = make_stream();
    vnxi_cu_ptr_t ptr = alloc(1);

    (void)state;
    assert_int_equal(calls->report(), 3); /* and the context */
    end_stream(stream);
    CU_OK(cu.cuMemFree_v2(ptr));
}

/* -- Scenes of children ----------------------------------------------------
 */

static void
scene_load(int socket)
{
    (void)socket;
    volatile char *ptr = (volatile char *)(uintptr_t)alloc(1);
    (void)*ptr;
}

static void
copy_now(vnxi_cu_ptr_t dst, vnxi_cu_ptr_t src, size_t len)
{
    vnxi_cu_stream_t stream = make_stream();
    CU_OK(cu.cuMemcpyDtoDAsync_v2(dst, src, len, stream));
    end_stream(stream);
}

static void
scene_copy_too_far(int socket)
{
    (void)socket;
    copy_now(alloc(3 * MiB), alloc(3 * MiB) + 1, 3 * MiB);
}

static void
scene_copy_freed(int socket)
{
    vnxi_cu_ptr_t freed = alloc(3 * MiB), other = alloc(3 * MiB);
    (void)socket;
    CU_OK(cu.cuMemFree_v2(freed));
    copy_now(other, freed, 1);
}

static void
scene_copy_without_access(int socket)
{
    vnxi_cu_ptr_t ptr = reserve(CHUNK);
    (void)socket;
    CU_OK(cu.cuMemMap(ptr, CHUNK, 0, create(CHUNK, 0), 0));
    copy_now(alloc(10), ptr, 10);
}

static void
scene_write_read_only(int socket)
{
    vnxi_cu_ptr_t ptr = reserve(CHUNK);
    vnxi_cu_access_t access = read_write;
    (void)socket;
    access.flags = VNXI_CU_MEM_ACCESS_FLAGS_PROT_READ;
    CU_OK(cu.cuMemMap(ptr, CHUNK, 0, create(CHUNK, 0), 0));
    CU_OK(cu.cuMemSetAccess(ptr, CHUNK, &access, 1));
    copy_now(ptr, alloc(10), 10);
}

static void
run_row(row_t row)
{
    vnxi_cu_module_t module;
    vnxi_cu_function_t function = load_kernel(&module);
    vnxi_cu_ptr_t table = alloc(sizeof row);
    vnxi_cu_stream_t stream = make_stream();
    calls->poke(table, &row, sizeof row);
    CU_OK(launch(function, table, 1, stream));
    end_stream(stream);
}

static void
scene_row_too_far(int socket)
{
    (void)socket;
    run_row((row_t){alloc(100), alloc(100) + 1, 100, 0});
}

static void
scene_row_of_pageable_memory(int socket)
{
    static char host[10];
    (void)socket;
    run_row((row_t){(uintptr_t)host, alloc(10), 10, 0});
}

static void
scene_row_overlaps(int socket)
{
    vnxi_cu_ptr_t ptr = alloc(100);
    (void)socket;
    run_row((row_t){ptr, ptr + 10, 20, 0});
}

static void
scene_row_of_far_device(int socket)
{
    vnxi_cu_context_t far;
    (void)socket;
    atomic_store(&fake->devices, 2);
    CU_OK(cu.cuDevicePrimaryCtxRetain(&far, 1));
    CU_OK(cu.cuCtxPushCurrent_v2(far));
    vnxi_cu_ptr_t there = alloc(100);
    CU_OK(cu.cuCtxPopCurrent_v2(NULL));
    run_row((row_t){there, alloc(100), 100, 0});
}

static void
scene_leak(int socket)
{
    (void)socket;
    alloc(10);
    setenv("FAKE_CUDA_EXIT", "strict", 1);
    exit(0);
}

static void
scene_fork(int socket)
{
    int version, status = 0;
    (void)socket;
    pid_t pid = fork();
    if (pid == 0) {
        _exit(cu.cuDriverGetVersion(&version) ==
                      VNXI_CUDA_ERROR_NOT_INITIALIZED
                  ? 0
                  : 1);
    }
    if (waitpid(pid, &status, 0) != pid || status != 0) {
        abort();
    }
    CU_OK(cu.cuDriverGetVersion(&version)); /* the parent goes on */
}

static const struct scene {
    const char *name;
    void (*run)(int socket);
    bool is_violation;
} scenes[] = {
    {"load", scene_load, false}, /* ends by SIGSEGV or a sanitizer */
    {"import", scene_import, false},
    {"fork", scene_fork, false},
    {"copy_too_far", scene_copy_too_far, true},
    {"copy_freed", scene_copy_freed, true},
    {"copy_without_access", scene_copy_without_access, true},
    {"write_read_only", scene_write_read_only, true},
    {"row_too_far", scene_row_too_far, true},
    {"row_of_pageable_memory", scene_row_of_pageable_memory, true},
    {"row_overlaps", scene_row_overlaps, true},
    {"row_of_far_device", scene_row_of_far_device, true},
    {"leak", scene_leak, true},
};

static void
violations_end_the_process(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof scenes / sizeof scenes[0]; i++) {
        if (scenes[i].is_violation) {
            child_t child = start_child(scenes[i].name);
            int status = await_child(&child);
            if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT) {
                fail_msg("%s: status %d", scenes[i].name, status);
            }
        }
    }
}

static void
forked_child_has_no_driver(void **state)
{
    child_t child = start_child("fork");
    (void)state;
    assert_int_equal(await_child(&child), 0);
}

static void
older_driver_lacks_the_optional_functions(void **state)
{
    void *library = dlopen(FAKE_CUDA_CUT, RTLD_NOW | RTLD_LOCAL);

    (void)state;
    assert_non_null(library);
    assert_null(dlsym(library, "cuMemcpyBatchAsync"));
    assert_null(dlsym(library, "cuStreamWriteValue32_v2"));
    assert_non_null(dlsym(library, "cuMemcpyDtoDAsync_v2"));
    dlclose(library);
}

/* -- The program -----------------------------------------------------------
 */

static int
set_up(void **state)
{
    (void)state;
    CU_OK(cu.cuDevicePrimaryCtxRetain(&context, 0));
    CU_OK(cu.cuCtxPushCurrent_v2(context));
    return 0;
}

/* After any test nothing lives, and nothing was wrong. */
static int
tear_down(void **state)
{
    (void)state;
    CU_OK(cu.cuCtxPopCurrent_v2(NULL));
    CU_OK(cu.cuDevicePrimaryCtxRelease_v2(0));
    assert_int_equal(calls->report(), 0);
    assert_int_equal(fake->misuses, 0);
    assert_int_equal(fake->captures_broken, 0);
    return 0;
}

static int
run_scene(const char *name, int socket)
{
    for (size_t i = 0; i < sizeof scenes / sizeof scenes[0]; i++) {
        if (strcmp(scenes[i].name, name) == 0) {
            set_up(NULL);
            scenes[i].run(socket);
            tear_down(NULL);
            return 0;
        }
    }
    return 2;
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        CASE(library_has_the_functions_of_the_table),
        CASE(every_thread_has_its_own_stack_of_contexts),
        CASE(context_is_active_while_it_is_retained),
        CASE(cpu_cannot_touch_device_memory),
        CASE(copies_move_the_bytes_that_they_name),
        CASE(attributes_tell_the_kinds_of_memory_apart),
        CASE(addresses_come_back_but_buffer_ids_do_not),
        CASE(address_range_is_that_of_the_allocation),
        CASE(mapped_memory_lives_until_its_last_mapping_and_handle),
        CASE(memory_of_chunks_is_copied_across_their_bounds),
        CASE(registered_memory_has_a_device_pointer),
        CASE(host_memory_must_be_unregistered_before_it_is_unmapped),
        CASE(streams_work_after_the_call_and_in_order),
        CASE(delays_change_no_result),
        CASE(
            host_function_runs_elsewhere_after_the_work_and_may_not_call_cuda),
        CASE(pinned_memory_is_read_later_and_pageable_memory_at_once),
        CASE(null_stream_and_blocking_streams_wait_for_each_other),
        CASE(stream_writes_a_value_after_its_work),
        CASE(threads_work_at_the_same_time),
        CASE(kernel_copies_the_rows_of_its_table),
        CASE(kernel_reads_rows_in_registered_memory),
        CASE(missing_compiler_leaves_a_log),
        CASE(batch_copies_all_but_not_in_the_null_stream),
        CASE(legacy_handles_open_in_another_process),
        CASE(importer_may_know_the_gpu_by_another_number_or_not_at_all),
        CASE(descriptors_and_fabric_handles_import_in_another_process),
        CASE(pool_memory_is_shared_by_its_pool),
        CASE(memory_outlives_its_exporter_and_death_ends_a_mapping),
        CASE(export_is_refused_where_the_driver_refuses_it),
        CASE(capture_forbids_unsafe_calls_of_threads_that_are_not_relaxed),
        CASE(captured_work_is_counted_and_an_unsafe_call_ends_the_capture),
        CASE(free_memory_is_told),
        CASE(device_error_stays_and_drops_the_work),
        CASE(devices_reach_each_other_if_they_are_peers),
        CASE(calls_are_counted_and_refused_by_name),
        CASE(exit_of_the_process_ends_the_driver),
        CASE(report_counts_what_lives),
        CASE(violations_end_the_process),
        CASE(forked_child_has_no_driver),
        CASE(older_driver_lacks_the_optional_functions),
    };
    vnxi_cu_ptr_t ptr;

    if (fake_load(FAKE_CUDA) != 0) {
        return 1;
    }
    if (cu.cuMemAlloc_v2(&ptr, 1) != VNXI_CUDA_ERROR_NOT_INITIALIZED ||
        cu.cuInit(0) != VNXI_CUDA_SUCCESS) {
        fprintf(stderr, "cuInit() is not asked for, or fails\n");
        return 1;
    }
    if (argc == 3) {
        return run_scene(argv[1], (int)strtol(argv[2], NULL, 10));
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
