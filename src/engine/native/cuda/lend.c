/*
 * Design notes.  A question arrives on the thread that reads the messages of
 * all peers, which must not wait for the driver.  So the worker of the region
 * makes the handles.
 *
 * A loan begins with its first question, before the region is looked up.  So a
 * deregistration either is noticed by the lookup or finds the loan.
 *
 * Each loan exports new handles and closes its own after sending them: an open
 * descriptor would keep the memory allocated.
 *
 * A program may free the memory of a region that is registered, and get other
 * memory at the same address (vLLM's sleep mode).  The driver's id of each
 * allocation shows that, and askers ask for it with every transfer (CHECK).
 */
#include "engine/native/cuda/lend.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork_fds.h"
#include "base/log.h"
#include "engine/native/cuda/context.h"
#include "engine/native/region_access.h"

#define OPERATION "vnx_xfer_post"
#define RETURN_NS (2u * UINT64_C(1000000000))
#define LOANS_MAX 65536u       /* for each port */
#define ASKER_LOANS_MAX 16384u /* for each asker */

typedef struct loan_name {
    uint64_t asker, id;
} loan_name_t;

/* An agent that has loans. */
typedef struct asker {
    uint64_t number;
    size_t loans;
} asker_t;

struct vnxi_cuda_loan {
    vnxi_cuda_loan_t *next, **at; /* `at` points to this one */
    asker_t *asker;
    bool is_asked; /* a question about it is being answered */
    loan_name_t name;
    uint64_t addr, len, dev;
    uint64_t ids[2];   /* of the allocations at the region's ends, as lent;
                          0: not lent yet */
    uint64_t deadline; /* of the return; 0: not recalled */
};

/* A question whose answer a worker makes. */
typedef struct vnxi_cuda_task {
    vnxi_cuda_job_t job;               /* first */
    struct vnxi_cuda_task *next, **at; /* of lender->tasks */
    vnxi_cuda_lender_t *lender;
    uint64_t asker, loan, from;
    vnxi_region_t *region; /* retained */
} task_t;

void
vnxi_cuda_lender_init(vnxi_cuda_lender_t *lender, const vnxi_port_t *port)
{
    *lender = (vnxi_cuda_lender_t){.port = port};
    vnxi_mutex_init(&lender->lock, VNXI_RANK_CUDA_LENDER);
    vnxi_cond_init(&lender->given_back);
}

/* -- Loans -----------------------------------------------------------------
 */

static vnxi_cuda_loan_t *
find_lock_held(const vnxi_cuda_lender_t *lender, uint64_t asker, uint64_t id)
{
    const loan_name_t name = {asker, id};
    return vnxi_name_map_get(&lender->by_name, &name, sizeof name);
}

static asker_t *
find_asker_lock_held(const vnxi_cuda_lender_t *lender, uint64_t number)
{
    return vnxi_name_map_get(&lender->askers, &number, sizeof number);
}

/* An asker that has no loans is not kept. */
static void
drop_asker_lock_held(vnxi_cuda_lender_t *lender, asker_t *asker)
{
    if (asker->loans == 0) {
        vnxi_name_map_remove(&lender->askers, &asker->number,
                             sizeof asker->number);
        free(asker);
    }
}

/* NULL: no memory. */
static asker_t *
make_asker_lock_held(vnxi_cuda_lender_t *lender, uint64_t number)
{
    asker_t *asker = find_asker_lock_held(lender, number);

    if (asker != NULL || (asker = calloc(1, sizeof *asker)) == NULL) {
        return asker;
    }
    asker->number = number;
    if (!vnxi_name_map_set(&lender->askers, &asker->number,
                           sizeof asker->number, asker)) {
        free(asker);
        return NULL;
    }
    return asker;
}

/* Begin the loan of a question.  False: no memory. */
static bool
begin_lock_held(vnxi_cuda_lender_t *lender, uint64_t number,
                const vnxi_lend_t *ask)
{
    asker_t *asker = make_asker_lock_held(lender, number);
    vnxi_cuda_loan_t *loan = asker != NULL ? malloc(sizeof *loan) : NULL;

    if (loan == NULL) {
        if (asker != NULL) {
            drop_asker_lock_held(lender, asker);
        }
        return false;
    }
    *loan = (vnxi_cuda_loan_t){.next = lender->loans,
                               .at = &lender->loans,
                               .asker = asker,
                               .is_asked = true,
                               .name = {number, ask->loan},
                               .addr = ask->addr,
                               .len = ask->len,
                               .dev = ask->dev};
    if (!vnxi_name_map_set(&lender->by_name, &loan->name, sizeof loan->name,
                           loan)) {
        free(loan);
        drop_asker_lock_held(lender, asker);
        return false;
    }
    asker->loans++;
    if (loan->next != NULL) {
        loan->next->at = &loan->next;
    }
    lender->loans = loan;
    return true;
}

static void
end_lock_held(vnxi_cuda_lender_t *lender, vnxi_cuda_loan_t *loan)
{
    vnxi_name_map_remove(&lender->by_name, &loan->name, sizeof loan->name);
    *loan->at = loan->next;
    if (loan->next != NULL) {
        loan->next->at = loan->at;
    }
    loan->asker->loans--;
    drop_asker_lock_held(lender, loan->asker);
    free(loan);
}

void
vnxi_cuda_lender_fini(vnxi_cuda_lender_t *lender)
{
    while (lender->loans != NULL) {
        end_lock_held(lender, lender->loans);
    }
    vnxi_name_map_fini(&lender->by_name);
    vnxi_name_map_fini(&lender->askers);
    vnxi_cond_destroy(&lender->given_back);
    vnxi_mutex_destroy(&lender->lock);
}

static void
end_loan(vnxi_cuda_lender_t *lender, uint64_t asker, uint64_t id)
{
    vnxi_mutex_lock(&lender->lock);
    vnxi_cuda_loan_t *loan = find_lock_held(lender, asker, id);
    if (loan != NULL) {
        end_lock_held(lender, loan);
    }
    vnxi_cond_broadcast(&lender->given_back);
    vnxi_mutex_unlock(&lender->lock);
}

void
vnxi_cuda_lender_forget(vnxi_cuda_lender_t *lender, uint64_t asker)
{
    vnxi_mutex_lock(&lender->lock);
    for (vnxi_cuda_loan_t *loan = lender->loans, *next; loan != NULL;
         loan = next) {
        next = loan->next;
        if (loan->name.asker == asker) {
            end_lock_held(lender, loan);
        }
    }
    vnxi_cond_broadcast(&lender->given_back);
    vnxi_mutex_unlock(&lender->lock);
}

size_t
vnxi_cuda_lender_count(vnxi_cuda_lender_t *lender)
{
    vnxi_mutex_lock(&lender->lock);
    size_t count = lender->by_name.count;
    vnxi_mutex_unlock(&lender->lock);
    return count;
}

/* -- Answers ---------------------------------------------------------------
 */

vnx_status_t
vnxi_cuda_answer(const vnxi_port_t *port, uint64_t asker,
                 const vnxi_lend_t *message, int *fds, size_t fd_count,
                 vnx_error_t *error)
{
    const vnxi_port_config_t *config = &port->config;
    vnxi_writer_t writer = {0};
    vnx_status_t status;

    vnxi_lend_write(&writer, message);
    const vnxi_control_t control = {.data = writer.data,
                                    .len = writer.len,
                                    .fds = fds,
                                    .fd_count = fd_count};
    if (writer.failed) {
        vnxi_fork_fds_close(fds, fd_count);
        status = vnxi_error_no_memory(error, OPERATION, writer.len);
    } else {
        status = config->host.answer(config->host.context, config->number,
                                     asker, &control, error);
    }
    vnxi_writer_fini(&writer);
    return status;
}

static void
answer(const vnxi_cuda_lender_t *lender, uint64_t asker,
       const vnxi_lend_t *message)
{
    vnxi_cuda_answer(lender->port, asker, message, NULL, 0, NULL);
}

/* The loan ends when the asker gives back what it may have got before. */
static void
refuse(const vnxi_cuda_lender_t *lender, uint64_t asker, uint64_t loan,
       vnx_status_t status, const char *cause)
{
    answer(lender, asker,
           &(vnxi_lend_t){.type = VNXI_LEND_REFUSED,
                          .loan = loan,
                          .status = vnxi_lend_status(status),
                          .cause = cause,
                          .count = strlen(cause)});
}

/* The asker may go on with the loan as soon as it has the answer. */
static void
set_answered(vnxi_cuda_lender_t *lender, uint64_t asker, uint64_t id)
{
    vnxi_mutex_lock(&lender->lock);
    vnxi_cuda_loan_t *loan = find_lock_held(lender, asker, id);
    if (loan != NULL) {
        loan->is_asked = false;
    }
    vnxi_mutex_unlock(&lender->lock);
}

/* -- Making handles --------------------------------------------------------
 */

bool
vnxi_cuda_can_lend(uint64_t is_legacy, uint64_t handle_types)
{
    return is_legacy != 0 ||
           (handle_types & (VNXI_CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR |
                            VNXI_CU_MEM_HANDLE_TYPE_FABRIC)) != 0;
}

static uint64_t
ask_pointer(const vnxi_cuda_library_t *library, uint64_t address,
            vnxi_cu_enum_t attribute)
{
    uint64_t value = 0;
    void *place = &value;

    return library->cu.cuPointerGetAttributes(1, &attribute, &place,
                                              address) == VNXI_CUDA_SUCCESS
               ? value
               : 0;
}

static uint64_t
buffer_id(const vnxi_cuda_library_t *library, uint64_t address)
{
    return ask_pointer(library, address, VNXI_CU_POINTER_ATTRIBUTE_BUFFER_ID);
}

/* Memory of cuMemCreate(): a descriptor, or a fabric handle if that is what it
 * was created for.  *fd_p is set for the first. */
static vnx_status_t
export_created(const vnxi_cuda_gpu_t *gpu, vnxi_lend_piece_t *piece, int *fd_p,
               vnx_error_t *error)
{
    const vnxi_cu_functions_t *cu = &gpu->library->cu;
    vnxi_cu_alloc_prop_t props = {0};
    const char *function = "cuMemRetainAllocationHandle";
    vnxi_cu_mem_t memory;

    vnxi_cu_result_t result = cu->cuMemRetainAllocationHandle(
        &memory, (void *)(uintptr_t)piece->start);
    if (result != VNXI_CUDA_SUCCESS) {
        return vnxi_cuda_error(gpu->library, OPERATION, gpu->ordinal, function,
                               result, error);
    }
    function = "cuMemGetAllocationPropertiesFromHandle";
    result = cu->cuMemGetAllocationPropertiesFromHandle(&props, memory);
    if (result == VNXI_CUDA_SUCCESS) {
        bool has_fd = (props.requestedHandleTypes &
                       VNXI_CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) != 0;
        function = "cuMemExportToShareableHandle";
        piece->kind = has_fd ? VNXI_LEND_FD : VNXI_LEND_FABRIC;
        result = cu->cuMemExportToShareableHandle(
            has_fd ? (void *)fd_p : piece->handle, memory,
            has_fd ? VNXI_CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
                   : VNXI_CU_MEM_HANDLE_TYPE_FABRIC,
            0);
    }
    cu->cuMemRelease(memory);
    if (result != VNXI_CUDA_SUCCESS) {
        return vnxi_cuda_error(gpu->library, OPERATION, gpu->ordinal, function,
                               result, error);
    }
    if (piece->kind == VNXI_LEND_FD) {
        vnxi_fork_fd_own(*fd_p);
    }
    return VNX_OK;
}

static vnx_status_t
export_one(const vnxi_cuda_gpu_t *gpu, uint64_t address,
           vnxi_lend_piece_t *piece, int *fd_p, vnx_error_t *error)
{
    const vnxi_cu_functions_t *cu = &gpu->library->cu;
    vnxi_cu_ipc_handle_t handle;
    vnxi_cu_ptr_t start = 0;
    size_t size = 0;

    memset(piece, 0, sizeof *piece);
    vnxi_cu_result_t result =
        cu->cuMemGetAddressRange_v2(&start, &size, address);
    if (result != VNXI_CUDA_SUCCESS || size == 0) {
        return vnxi_error_set(error, VNX_ERR_NOT_FOUND, OPERATION,
                              "the GPU memory at 0x%" PRIx64
                              " was freed while it was registered",
                              address);
    }
    piece->start = start;
    piece->size = size;
    piece->id = buffer_id(gpu->library, start);
    if (ask_pointer(gpu->library, address,
                    VNXI_CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE) ==
        0) {
        return export_created(gpu, piece, fd_p, error);
    }
    piece->kind = VNXI_LEND_LEGACY;
    result = cu->cuIpcGetMemHandle(&handle, start);
    memcpy(piece->handle, &handle, sizeof piece->handle);
    return result == VNXI_CUDA_SUCCESS
               ? VNX_OK
               : vnxi_cuda_error(gpu->library, OPERATION, gpu->ordinal,
                                 "cuIpcGetMemHandle", result, error);
}

/* The allocations of one LENT. */
typedef struct batch {
    vnxi_lend_piece_t pieces[VNXI_LEND_PIECES_MAX];
    int fds[VNXI_LEND_PIECES_MAX];
    size_t count, fd_count;
    uint64_t next; /* the address after them */
} batch_t;

static vnx_status_t
export_some(const vnxi_cuda_gpu_t *gpu, const task_t *task, batch_t *batch,
            vnx_error_t *error)
{
    uint64_t end = vnxi_region_end(task->region);
    vnx_status_t status = VNX_OK;

    batch->next = task->from;
    while (status == VNX_OK && batch->next < end &&
           batch->count < VNXI_LEND_PIECES_MAX) {
        vnxi_lend_piece_t *piece = &batch->pieces[batch->count];
        status = export_one(gpu, batch->next, piece,
                            &batch->fds[batch->fd_count], error);
        if (status == VNX_OK) {
            batch->count++;
            batch->fd_count += piece->kind == VNXI_LEND_FD;
            batch->next = piece->start + piece->size;
        }
    }
    if (status != VNX_OK) {
        vnxi_fork_fds_close(batch->fds, batch->fd_count);
    }
    return status;
}

/* Note which allocations the asker gets.  False: the loan has ended. */
static bool
note_ids(const task_t *task, const vnxi_cuda_gpu_t *gpu)
{
    vnxi_cuda_lender_t *lender = task->lender;
    const vnxi_region_t *region = task->region;
    uint64_t ids[] = {
        buffer_id(gpu->library, region->addr),
        buffer_id(gpu->library, vnxi_region_end(region) - 1),
    };

    vnxi_mutex_lock(&lender->lock);
    vnxi_cuda_loan_t *loan = find_lock_held(lender, task->asker, task->loan);
    if (loan != NULL && task->from == region->addr) {
        memcpy(loan->ids, ids, sizeof ids);
    }
    vnxi_mutex_unlock(&lender->lock);
    return loan != NULL;
}

/* After the descriptors of its answer were closed. */
static void
end_task(task_t *task)
{
    vnxi_cuda_lender_t *lender = task->lender;

    vnxi_mutex_lock(&lender->lock);
    *task->at = task->next;
    if (task->next != NULL) {
        task->next->at = task->at;
    }
    vnxi_cond_broadcast(&lender->given_back);
    vnxi_mutex_unlock(&lender->lock);
    vnxi_region_release(task->region);
    free(task);
}

static void
run_task(vnxi_cuda_job_t *job, vnxi_cuda_gpu_t *gpu, const vnx_error_t *why)
{
    task_t *task = (task_t *)job;
    vnxi_cuda_lender_t *lender = task->lender;
    const vnxi_port_host_t *host = &lender->port->config.host;
    vnx_status_t status = VNX_ERR_NOT_FOUND;
    vnx_error_t error;
    batch_t batch;

    batch.count = batch.fd_count = 0;
    if (gpu == NULL) {
        status = vnxi_cuda_no_gpu(why, &error);
    } else if (vnxi_region_is_gone(task->region) || !note_ids(task, gpu)) {
        vnxi_error_set(&error, status, OPERATION,
                       "the GPU memory was deregistered");
    } else {
        status = export_some(gpu, task, &batch, &error);
    }
    set_answered(lender, task->asker, task->loan);
    if (status == VNX_OK) {
        const vnxi_lend_t lent = {.type = VNXI_LEND_LENT,
                                  .loan = task->loan,
                                  .is_last = batch.next >=
                                             vnxi_region_end(task->region),
                                  .count = batch.count,
                                  .pieces = batch.pieces};
        status = vnxi_cuda_answer(lender->port, task->asker, &lent, batch.fds,
                                  batch.fd_count, &error);
    }
    if (status != VNX_OK) {
        refuse(lender, task->asker, task->loan, status, error.cause);
    }
    end_task(task);
    host->release(host->context);
}

/* -- Questions -------------------------------------------------------------
 */

/* Return whether the asker, or all askers together, have the most loans that
 * are allowed. */
static bool
is_full_lock_held(const vnxi_cuda_lender_t *lender, uint64_t asker)
{
    const asker_t *one = find_asker_lock_held(lender, asker);
    return lender->by_name.count == LOANS_MAX ||
           (one != NULL && one->loans == ASKER_LOANS_MAX);
}

/* Begin the loan of a first question, or find it.  Returns the reason if that
 * is not possible. */
static const char *
begin_loan(vnxi_cuda_lender_t *lender, uint64_t asker, const vnxi_lend_t *ask,
           vnx_status_t *status_p)
{
    const char *why = NULL;

    vnxi_mutex_lock(&lender->lock);
    vnxi_cuda_loan_t *loan = find_lock_held(lender, asker, ask->loan);
    if (lender->is_leaving) {
        *status_p = VNX_ERR_REMOTE_DISCONNECT;
        why = "the agent is being closed";
    } else if (loan != NULL && loan->is_asked) {
        *status_p = VNX_ERR_NOT_FOUND;
        why = "the last question about it is not answered yet";
    } else if (loan != NULL) {
        *status_p = VNX_ERR_NOT_FOUND;
        why = loan->deadline != 0 || loan->addr != ask->addr ||
                      loan->len != ask->len || loan->dev != ask->dev
                  ? "the GPU memory was deregistered"
                  : NULL;
        loan->is_asked = why == NULL;
    } else if (ask->from != ask->addr) {
        *status_p = VNX_ERR_NOT_FOUND;
        why = "the GPU memory was deregistered";
    } else if (is_full_lock_held(lender, asker)) {
        *status_p = VNX_ERR_NOT_SUPPORTED; /* the asker opens a window */
        why = "too many regions are lent";
    } else if (!begin_lock_held(lender, asker, ask)) {
        *status_p = VNX_ERR_NO_MEMORY;
        why = "the owner has no memory";
    }
    vnxi_mutex_unlock(&lender->lock);
    return why;
}

vnxi_region_t *
vnxi_cuda_asked_region(const vnxi_port_t *port, const vnxi_lend_t *message)
{
    vnxi_region_t key = {.mem = VNX_MEM_VRAM,
                         .addr = message->addr,
                         .len = message->len,
                         .dev = message->dev};
    vnxi_region_t *region = NULL;

    vnxi_registry_find(port->config.registry, &key, 1, &region);
    return region;
}

static void
start_task(vnxi_cuda_lender_t *lender, uint64_t asker, const vnxi_lend_t *ask,
           vnxi_region_t *region)
{
    const vnxi_port_config_t *config = &lender->port->config;
    vnxi_cuda_mem_t *mem = vnxi_region_slot(region, config->number);
    task_t *task = malloc(sizeof *task);

    if (task == NULL || mem == NULL || !mem->is_lent ||
        ask->from < region->addr || ask->from >= vnxi_region_end(region)) {
        bool is_ours = task != NULL && mem != NULL && mem->is_lent;
        set_answered(lender, asker, ask->loan);
        refuse(lender, asker, ask->loan, VNX_ERR_NOT_SUPPORTED,
               task == NULL ? "the owner has no memory"
               : is_ours    ? "the address is not in the region"
                            : "the GPU memory cannot be shared");
        vnxi_region_release(region);
        free(task);
        return;
    }
    *task = (task_t){.job.run = run_task,
                     .lender = lender,
                     .asker = asker,
                     .loan = ask->loan,
                     .from = ask->from,
                     .region = region};
    vnxi_mutex_lock(&lender->lock);
    task->next = lender->tasks;
    task->at = &lender->tasks;
    if (task->next != NULL) {
        task->next->at = &task->next;
    }
    lender->tasks = task;
    vnxi_mutex_unlock(&lender->lock);
    config->host.retain(config->host.context);
    vnxi_cuda_worker_run(mem->worker, &task->job);
}

static void
on_ask(vnxi_cuda_lender_t *lender, uint64_t asker, const vnxi_lend_t *ask)
{
    vnx_status_t status = VNX_OK;
    const char *why = begin_loan(lender, asker, ask, &status);

    if (why != NULL) {
        refuse(lender, asker, ask->loan, status, why);
        return;
    }
    vnxi_region_t *region = vnxi_cuda_asked_region(lender->port, ask);
    if (region == NULL) {
        set_answered(lender, asker, ask->loan);
        refuse(lender, asker, ask->loan, VNX_ERR_NOT_FOUND,
               "the region is not registered");
        return;
    }
    start_task(lender, asker, ask, region);
}

/* Has the region still the allocations that were lent? */
static bool
is_current(const vnxi_cuda_lender_t *lender,
           const vnxi_cuda_library_t *library, uint64_t asker, uint64_t id)
{
    const vnxi_cuda_loan_t *loan = find_lock_held(lender, asker, id);

    return loan != NULL && loan->deadline == 0 &&
           buffer_id(library, loan->addr) == loan->ids[0] &&
           buffer_id(library, loan->addr + loan->len - 1) == loan->ids[1];
}

/* The driver answers from its own tables, in a microsecond. */
static void
on_check(vnxi_cuda_lender_t *lender, uint64_t asker, const vnxi_lend_t *check)
{
    const vnxi_cuda_library_t *library =
        vnxi_cuda_library(VNXI_CUDA_IF_USED, NULL);
    uint64_t *old = malloc((check->count + 1) * sizeof *old);
    vnxi_cuda_scope_t scope;
    size_t count = 0;

    if (old == NULL || library == NULL) {
        free(old); /* the asker gives up after a time */
        return;
    }
    vnxi_cuda_relax(library, &scope);
    vnxi_mutex_lock(&lender->lock);
    for (size_t i = 0; i < check->count; i++) {
        uint64_t loan = vnxi_lend_loan(check, i);
        if (!is_current(lender, library, asker, loan)) {
            old[count++] = loan;
        }
    }
    vnxi_mutex_unlock(&lender->lock);
    vnxi_cuda_leave(&scope);
    answer(lender, asker,
           &(vnxi_lend_t){.type = VNXI_LEND_CHECKED,
                          .loan = check->loan,
                          .count = count,
                          .loans = old});
    free(old);
}

void
vnxi_cuda_lender_on_question(vnxi_cuda_lender_t *lender, uint64_t asker,
                             const vnxi_lend_t *message)
{
    if (message->type == VNXI_LEND_ASK) {
        on_ask(lender, asker, message);
    } else if (message->type == VNXI_LEND_RETURNED) {
        end_loan(lender, asker, message->loan);
    } else if (message->type == VNXI_LEND_CHECK) {
        on_check(lender, asker, message);
    }
}

/* -- Recalling -------------------------------------------------------------
 */

static bool
is_loan_of(const vnxi_cuda_loan_t *loan, const vnxi_region_t *region)
{
    return region == NULL ||
           (loan->addr == region->addr && loan->len == region->len &&
            loan->dev == region->dev);
}

/* Mark the next loan to recall; false: there is none. */
static bool
mark_next(vnxi_cuda_lender_t *lender, const vnxi_region_t *region,
          uint64_t deadline, uint64_t *asker_p, uint64_t *id_p)
{
    vnxi_mutex_lock(&lender->lock);
    vnxi_cuda_loan_t *loan = lender->loans;
    lender->is_leaving = lender->is_leaving || region == NULL;
    while (loan != NULL &&
           (loan->deadline != 0 || !is_loan_of(loan, region))) {
        loan = loan->next;
    }
    if (loan != NULL) {
        loan->deadline = deadline;
        *asker_p = loan->name.asker;
        *id_p = loan->name.id;
    }
    vnxi_mutex_unlock(&lender->lock);
    return loan != NULL;
}

void
vnxi_cuda_lender_recall(vnxi_cuda_lender_t *lender,
                        const vnxi_region_t *region)
{
    uint64_t deadline = vnxi_clock_deadline(RETURN_NS), asker, id;

    while (mark_next(lender, region, deadline, &asker, &id)) {
        answer(lender, asker,
               &(vnxi_lend_t){.type = VNXI_LEND_RECALL, .loan = id});
    }
}

/* The earliest deadline of a recalled loan; 0: none was recalled. */
static uint64_t
earliest_lock_held(const vnxi_cuda_lender_t *lender)
{
    uint64_t earliest = 0;

    for (const vnxi_cuda_loan_t *loan = lender->loans; loan != NULL;
         loan = loan->next) {
        if (loan->deadline != 0 &&
            (earliest == 0 || loan->deadline < earliest)) {
            earliest = loan->deadline;
        }
    }
    return earliest;
}

/* Returns how many loans are given up. */
static size_t
give_up_lock_held(vnxi_cuda_lender_t *lender, uint64_t now)
{
    size_t count = 0;

    for (vnxi_cuda_loan_t *loan = lender->loans, *next; loan != NULL;
         loan = next) {
        next = loan->next;
        if (loan->deadline != 0 && loan->deadline <= now) {
            end_lock_held(lender, loan);
            count++;
        }
    }
    return count;
}

/* An exported descriptor keeps the memory allocated until it is closed. */
static bool
is_exporting_lock_held(const vnxi_cuda_lender_t *lender)
{
    const task_t *task = lender->tasks;

    while (task != NULL && !lender->is_leaving &&
           !vnxi_region_is_gone(task->region)) {
        task = task->next;
    }
    return task != NULL;
}

void
vnxi_cuda_lender_settle(vnxi_cuda_lender_t *lender)
{
    size_t given_up = 0;
    uint64_t until;

    vnxi_mutex_lock(&lender->lock);
    while (is_exporting_lock_held(lender)) {
        vnxi_cond_wait(&lender->given_back, &lender->lock);
    }
    while ((until = earliest_lock_held(lender)) != 0) {
        struct timespec when = vnxi_clock_timespec(until);
        vnxi_cond_timedwait(&lender->given_back, &lender->lock, &when);
        given_up += give_up_lock_held(lender, vnxi_clock_ns());
    }
    vnxi_mutex_unlock(&lender->lock);
    if (given_up > 0) {
        vnxi_log(VNX_LOG_WARNING, lender->port->config.name,
                 "peers have not given back %zu region%s of GPU memory within "
                 "2 s: the memory stays allocated until they do",
                 given_up, given_up == 1 ? "" : "s");
    }
}
