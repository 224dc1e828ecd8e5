/*
 * The copy kernel: one launch copies a table of rows.  It is text in PTX,
 * NVIDIA's assembly language, which the driver compiles for its GPU: for any
 * from compute capability 7.0 (Volta) on, if it knows CUDA 11.0 or later.
 *
 * Launch: cuModuleLoadDataEx(vnxi_cuda_kernel_text), which ends with a NUL;
 * cuModuleGetFunction(VNXI_CUDA_KERNEL_NAME); cuLaunchKernel() with any
 * one-dimensional grid, a block of (32 to 1024, 1, 1) threads that is a
 * multiple of 32, no shared memory, and two parameters: the address of the
 * table on the device (vnxi_cu_ptr_t, a multiple of 16) and the number of rows
 * (uint32_t, may be 0).
 *
 * A warp (32 threads) copies one row at a time; warp i of n takes the rows i,
 * i + n, ...  So rows of similar length share the work best.  The kernel reads
 * and writes the bytes of its rows and no others, of any length and at any
 * address.  It moves 16 bytes per thread and access if source and destination
 * are equal modulo 16, 4 bytes if they are equal modulo 4, otherwise single
 * bytes, four accesses at a time.
 *
 * The caller checks the rows: a bad address destroys the context, and with it
 * the program's own work on the GPU.  No byte may be written that another row
 * reads or writes.
 */
#ifndef VNXI_NATIVE_CUDA_KERNEL_H
#define VNXI_NATIVE_CUDA_KERNEL_H

#include <stdint.h>

/* Addresses as the launching context sees them. */
typedef struct vnxi_cuda_row {
    uint64_t src, dst;
    uint64_t len;   /* in bytes; 0 is allowed */
    uint64_t spare; /* not read */
} vnxi_cuda_row_t;

#define VNXI_CUDA_KERNEL_NAME "copy_rows"

extern const char vnxi_cuda_kernel_text[];

#endif
