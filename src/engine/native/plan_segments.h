/*
 * Writes the segments of a plan: takes pairs of rows, merges neighbours, cuts
 * long pieces, and puts regular ones into one segment.
 */
#ifndef VNXI_NATIVE_PLAN_SEGMENTS_H
#define VNXI_NATIVE_PLAN_SEGMENTS_H

#include "engine/native/plan.h"

/* The piece that the next row may continue; len 0: none. */
typedef struct vnxi_open_piece {
    uint64_t local, remote, len;
    uint32_t route;
} vnxi_open_piece_t;

typedef struct vnxi_segment_writer {
    vnxi_plan_t *plan; /* gets the segments; chunks are made at the end */
    size_t rows;       /* expected rows */
    size_t rows_seen;  /* rows so far; both serve to guess the number of
                          segments */
    bool merge;
    bool failed; /* no memory: later rows are ignored */
    vnxi_open_piece_t open;
    uint64_t pieces; /* closed so far */
    /* The last segment (NULL: none yet), and where its next piece would be. */
    vnxi_segment_t *last;
    uint64_t next_local, next_remote;
} vnxi_segment_writer_t;

/* Rows given as arrays. */
typedef struct vnxi_segment_rows {
    const uint64_t *local, *remote;
    const uint64_t *lens; /* NULL: all are `len` */
    uint64_t len;
    size_t count;
    uint32_t route;
} vnxi_segment_rows_t;

/* Rows at regular strides (modulo 2^64). */
typedef struct vnxi_segment_run {
    uint64_t local, remote, local_stride, remote_stride, len;
    size_t count; /* > 0 */
    uint32_t route;
} vnxi_segment_run_t;

/* `plan` must be all zeros. */
void vnxi_segments_begin(vnxi_segment_writer_t *writer, vnxi_plan_t *plan,
                         size_t rows, bool merge);
void vnxi_segments_rows(vnxi_segment_writer_t *writer,
                        const vnxi_segment_rows_t *rows);
void vnxi_segments_run(vnxi_segment_writer_t *writer,
                       const vnxi_segment_run_t *run);

/* Write the open piece and make the chunks; the plan's `bytes` must be set.
 * False: no memory.  The caller frees the plan by vnxi_plan_fini() either way.
 */
bool vnxi_segments_finish(vnxi_segment_writer_t *writer);

#endif
