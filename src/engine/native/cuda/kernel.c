/*
 * Design notes.  All counts are 64 bits wide, so that no length of a row, no
 * number of rows and no grid overflows them.
 *
 * A row has three parts: the bytes before the first one that is aligned to the
 * width of an access in the destination (head), whole accesses (body), and the
 * bytes after them (tail).  Head and tail are shorter than 16 bytes, so each
 * takes one access of the warp; they are loaded before the body and stored
 * after it, because a thread waits where it uses what it has loaded.  For the
 * same reason each loop loads four times before it stores.
 *
 * No thread depends on another one: no barriers, no shared memory, no votes.
 * The data is used once, so .cs lets the cache drop it first.
 */
#include "engine/native/cuda/kernel.h"

#include <stddef.h>

_Static_assert(sizeof(vnxi_cuda_row_t) == 32 &&
                   offsetof(vnxi_cuda_row_t, src) == 0 &&
                   offsetof(vnxi_cuda_row_t, dst) == 8 &&
                   offsetof(vnxi_cuda_row_t, len) == 16,
               "the kernel has these numbers");

/* clang-format off */
const char vnxi_cuda_kernel_text[] =
".version 7.0\n"
".target sm_70\n"
".address_size 64\n"
".visible .entry " VNXI_CUDA_KERNEL_NAME
"(.param .u64 table, .param .u32 count)\n"
".maxntid 1024, 1, 1\n"
"{\n"
"  .reg .pred end, head_on, tail_on, on1, on2, on3;\n"
"  .reg .b32 v, block, thread, tail_v;\n"
"  .reg .b32 a0, a1, a2, a3, a4, a5, a6, a7;\n"
"  .reg .b32 a8, a9, a10, a11, a12, a13, a14, a15;\n"
"  .reg .b64 row, rows_end, step, lane, src, dst, len;\n"
"  .reg .b64 mask, head, tail, left, s, d, head_s, head_d, tail_s, tail_d;\n"

/* The first row of this warp, the distance to its next one, the lane. */
"  ld.param.u64 row, [table];\n"
"  ld.param.u32 v, [count];\n"
"  mul.wide.u32 rows_end, v, 32;\n"
"  add.u64 rows_end, row, rows_end;\n"
"  mov.u32 v, %ctaid.x;\n"
"  mov.u32 block, %ntid.x;\n"
"  mov.u32 thread, %tid.x;\n"
"  mul.wide.u32 s, v, block;\n"
"  cvt.u64.u32 d, thread;\n"
"  add.u64 s, s, d;\n"
"  and.b64 lane, s, 31;\n"
"  sub.u64 s, s, lane;\n" /* 32 times the number of the warp */
"  add.u64 row, row, s;\n"
"  mov.u32 v, %nctaid.x;\n"
"  mul.wide.u32 step, v, block;\n"

"ROW:\n"
"  setp.ge.u64 end, row, rows_end;\n"
"  @end bra DONE;\n"
"  ld.global.v2.u64 {src, dst}, [row];\n"
"  ld.global.u64 len, [row+16];\n"
"  add.u64 row, row, step;\n"

/* mask: the width of an access - 1 */
"  xor.b64 s, src, dst;\n"
"  mov.u64 mask, 15;\n"
"  and.b64 d, s, 15;\n"
"  setp.eq.u64 end, d, 0;\n"
"  @end bra PARTS;\n"
"  mov.u64 mask, 3;\n"
"  and.b64 d, s, 3;\n"
"  setp.eq.u64 end, d, 0;\n"
"  @end bra PARTS;\n"
"  mov.u64 mask, 0;\n"

"PARTS:\n"
"  neg.s64 head, dst;\n"
"  and.b64 head, head, mask;\n"
"  min.u64 head, head, len;\n"
"  sub.u64 left, len, head;\n"
"  and.b64 tail, left, mask;\n"
"  sub.u64 left, left, tail;\n" /* the body */
"  setp.lt.u64 head_on, lane, head;\n"
"  add.u64 head_s, src, lane;\n"
"  add.u64 head_d, dst, lane;\n"
"  @head_on ld.global.u8 v, [head_s];\n"
"  setp.lt.u64 tail_on, lane, tail;\n"
"  sub.u64 s, len, tail;\n"
"  add.u64 tail_s, head_s, s;\n"
"  add.u64 tail_d, head_d, s;\n"
"  @tail_on ld.global.u8 tail_v, [tail_s];\n"
"  add.u64 s, src, head;\n"
"  add.u64 d, dst, head;\n"
"  setp.eq.u64 end, mask, 0;\n"
"  @end bra BYTES;\n"
"  setp.eq.u64 end, mask, 3;\n"
"  @end bra WORDS;\n"

/* left: what is left of the body from this thread's next access on; may become
 * negative */
"  shl.b64 mask, lane, 4;\n"
"  add.u64 s, s, mask;\n"
"  add.u64 d, d, mask;\n"
"  sub.s64 left, left, mask;\n"
"WIDE:\n"
"  setp.le.s64 end, left, 0;\n"
"  @end bra ENDS;\n"
"  setp.gt.s64 on1, left, 512;\n"
"  setp.gt.s64 on2, left, 1024;\n"
"  setp.gt.s64 on3, left, 1536;\n"
"  ld.global.cs.v4.u32 {a0, a1, a2, a3}, [s];\n"
"  @on1 ld.global.cs.v4.u32 {a4, a5, a6, a7}, [s+512];\n"
"  @on2 ld.global.cs.v4.u32 {a8, a9, a10, a11}, [s+1024];\n"
"  @on3 ld.global.cs.v4.u32 {a12, a13, a14, a15}, [s+1536];\n"
"  st.global.cs.v4.u32 [d], {a0, a1, a2, a3};\n"
"  @on1 st.global.cs.v4.u32 [d+512], {a4, a5, a6, a7};\n"
"  @on2 st.global.cs.v4.u32 [d+1024], {a8, a9, a10, a11};\n"
"  @on3 st.global.cs.v4.u32 [d+1536], {a12, a13, a14, a15};\n"
"  add.u64 s, s, 2048;\n"
"  add.u64 d, d, 2048;\n"
"  sub.s64 left, left, 2048;\n"
"  bra WIDE;\n"

"WORDS:\n"
"  shl.b64 mask, lane, 2;\n"
"  add.u64 s, s, mask;\n"
"  add.u64 d, d, mask;\n"
"  sub.s64 left, left, mask;\n"
"WORD:\n"
"  setp.le.s64 end, left, 0;\n"
"  @end bra ENDS;\n"
"  setp.gt.s64 on1, left, 128;\n"
"  setp.gt.s64 on2, left, 256;\n"
"  setp.gt.s64 on3, left, 384;\n"
"  ld.global.cs.u32 a0, [s];\n"
"  @on1 ld.global.cs.u32 a1, [s+128];\n"
"  @on2 ld.global.cs.u32 a2, [s+256];\n"
"  @on3 ld.global.cs.u32 a3, [s+384];\n"
"  st.global.cs.u32 [d], a0;\n"
"  @on1 st.global.cs.u32 [d+128], a1;\n"
"  @on2 st.global.cs.u32 [d+256], a2;\n"
"  @on3 st.global.cs.u32 [d+384], a3;\n"
"  add.u64 s, s, 512;\n"
"  add.u64 d, d, 512;\n"
"  sub.s64 left, left, 512;\n"
"  bra WORD;\n"

"BYTES:\n"
"  add.u64 s, s, lane;\n"
"  add.u64 d, d, lane;\n"
"  sub.s64 left, left, lane;\n"
"BYTE:\n"
"  setp.le.s64 end, left, 0;\n"
"  @end bra ENDS;\n"
"  setp.gt.s64 on1, left, 32;\n"
"  setp.gt.s64 on2, left, 64;\n"
"  setp.gt.s64 on3, left, 96;\n"
"  ld.global.cs.u8 a0, [s];\n"
"  @on1 ld.global.cs.u8 a1, [s+32];\n"
"  @on2 ld.global.cs.u8 a2, [s+64];\n"
"  @on3 ld.global.cs.u8 a3, [s+96];\n"
"  st.global.cs.u8 [d], a0;\n"
"  @on1 st.global.cs.u8 [d+32], a1;\n"
"  @on2 st.global.cs.u8 [d+64], a2;\n"
"  @on3 st.global.cs.u8 [d+96], a3;\n"
"  add.u64 s, s, 128;\n"
"  add.u64 d, d, 128;\n"
"  sub.s64 left, left, 128;\n"
"  bra BYTE;\n"

"ENDS:\n"
"  @head_on st.global.u8 [head_d], v;\n"
"  @tail_on st.global.u8 [tail_d], tail_v;\n"
"  bra ROW;\n"

"DONE:\n"
"  ret;\n"
"}\n";
/* clang-format on */
