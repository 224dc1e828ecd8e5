/*
 * A libcuda of which only the start works: cuInit(), its error, the number of
 * devices.  The other functions exist and refuse; -DNAME=ANOTHER builds a
 * library without one of them.  Environment: CUDA_START_RESULT is what
 * cuInit() answers, CUDA_START_DEVICES the number of devices.
 */
#include "cuda_start.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#define DEFINE(result, name, parameters)      \
    result name parameters                    \
    {                                         \
        return VNXI_CUDA_ERROR_NOT_SUPPORTED; \
    }
VNXI_CU_WORK_FUNCTIONS(DEFINE)
VNXI_CU_OPTIONAL_FUNCTIONS(DEFINE)

static int
setting(const char *name, int otherwise)
{
    const char *value = getenv(name);
    return value != NULL ? atoi(value) : otherwise;
}

static atomic_int inits;
static atomic_int user; /* the process that called cuInit() */

int
cuda_start_inits(void)
{
    return atomic_load(&inits);
}

vnxi_cu_result_t
cuInit(unsigned flags)
{
    int nobody = 0;

    (void)flags;
    atomic_fetch_add(&inits, 1);
    if (!atomic_compare_exchange_strong(&user, &nobody, getpid()) &&
        nobody != getpid()) {
        return VNXI_CUDA_ERROR_NOT_INITIALIZED;
    }
    return (vnxi_cu_result_t)setting("CUDA_START_RESULT", VNXI_CUDA_SUCCESS);
}

vnxi_cu_result_t
cuDriverGetVersion(int *version_p)
{
    *version_p = 12080;
    return VNXI_CUDA_SUCCESS;
}

vnxi_cu_result_t
cuDeviceGetCount(int *count_p)
{
    if (atomic_load(&user) != getpid()) {
        return VNXI_CUDA_ERROR_NOT_INITIALIZED;
    }
    *count_p = setting("CUDA_START_DEVICES", 2);
    return VNXI_CUDA_SUCCESS;
}

vnxi_cu_result_t
cuGetErrorName(vnxi_cu_result_t result, const char **name_p)
{
    if (result != VNXI_CUDA_ERROR_NO_DEVICE) {
        *name_p = NULL;
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    *name_p = "CUDA_ERROR_NO_DEVICE";
    return VNXI_CUDA_SUCCESS;
}
