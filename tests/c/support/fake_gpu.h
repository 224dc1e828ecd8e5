/*
 * Loads the fake libcuda.so.1 beside another fake library: with the names
 * `gpu`, `gpu_calls`, `gpu_load` for what fake_cuda_load.h calls `fake`,
 * `calls`, `fake_load`.
 */
#ifndef FAKE_GPU_H
#define FAKE_GPU_H

#define fake gpu
#define calls gpu_calls
#define fake_load gpu_load
#include "fake_cuda_load.h"
#undef fake
#undef calls
#undef fake_load

#endif
