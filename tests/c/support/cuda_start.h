/* What cuda_start.c exports: libcuda's functions, and one of its own. */
#ifndef CUDA_START_H
#define CUDA_START_H

#include "engine/native/cuda/cuda_abi.h"

#pragma GCC visibility push(default)

#define DECLARE(result, name, parameters) result name parameters;
VNXI_CU_START_FUNCTIONS(DECLARE)
VNXI_CU_WORK_FUNCTIONS(DECLARE)
VNXI_CU_OPTIONAL_FUNCTIONS(DECLARE)
#undef DECLARE

/* How often cuInit() was called. */
int cuda_start_inits(void);

#pragma GCC visibility pop

#endif
