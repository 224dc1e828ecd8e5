/*
 * Design notes.  Three steps, each on the output of the one before:
 *
 *   merging   the open piece grows as long as rows continue it on both sides;
 *   cutting   a closed piece longer than VNXI_PIECE_MAX becomes a run;
 *   strides   pieces of equal length whose addresses advance regularly share a
 *             segment.  The search is greedy: any two neighbours of equal
 *             length share one, so that scattered pieces take half the
 *             memory.
 *
 * Runs of rows stay runs through all three steps.  The chunk table is made
 * from the segments at the end.
 */
#include "engine/native/plan_segments.h"

#include <string.h>

#include "base/recycle.h"

#define SMALL_SEGMENTS \
    (sizeof((vnxi_plan_t *)0)->small / sizeof(vnxi_segment_t))
#define SMALL_CHUNKS \
    (sizeof((vnxi_plan_t *)0)->small_chunk / sizeof(vnxi_chunk_t))
#define SEGMENTS_FIRST 64u
/* Upper limit of a guess. */
#define GUESS_MAX ((size_t)32 << 20)

/* -- Memory --------------------------------------------------------------- */

/* Estimate the total from the segments that the rows so far have taken. */
static size_t
guess_segments(const vnxi_segment_writer_t *writer)
{
    double all = (double)writer->plan->segment_count *
                 ((double)writer->rows / (double)(writer->rows_seen + 1));
    double limit = (double)GUESS_MAX / sizeof(vnxi_segment_t);
    return (size_t)((all < limit ? all : limit) * 1.05) + SEGMENTS_FIRST;
}

/* Make room for `more` segments. */
static __attribute__((noinline)) bool
grow_segments(vnxi_segment_writer_t *writer, size_t more)
{
    vnxi_plan_t *plan = writer->plan;
    size_t count = plan->segment_count, guess = guess_segments(writer);
    size_t capacity = guess > 2 * count ? guess : 2 * count;
    bool small = plan->segments == plan->small;
    vnxi_segment_t *segments = NULL;

    capacity = capacity > count + more ? capacity : count + more;
    if (capacity <= UINT32_MAX) { /* the range of a chunk's fields */
        segments = vnxi_recycle_grow(
            small ? NULL : plan->segments,
            small ? 0 : plan->segment_capacity * sizeof *segments,
            capacity * sizeof *segments);
    }
    if (segments == NULL) {
        writer->failed = true;
        return false;
    }
    if (small) {
        memcpy(segments, plan->small, sizeof plan->small);
    }
    plan->segments = segments;
    plan->segment_capacity = capacity;
    writer->last = count > 0 ? &segments[count - 1] : NULL;
    return true;
}

/* The first growth assumes well-filled chunks, computed from bytes and pieces.
 */
static bool
grow_chunks(vnxi_plan_t *plan)
{
    bool small = plan->chunks == plan->small_chunk;
    uint64_t guess =
        plan->bytes / VNXI_CHUNK_BYTES + plan->pieces / VNXI_CHUNK_PIECES;
    size_t capacity =
        small ? (size_t)guess + 8 : plan->chunk_capacity + guess + 8;
    vnxi_chunk_t *chunks =
        vnxi_recycle_grow(small ? NULL : plan->chunks,
                          small ? 0 : plan->chunk_capacity * sizeof *chunks,
                          capacity * sizeof *chunks);
    if (chunks == NULL) {
        return false;
    }
    if (small) {
        memcpy(chunks, plan->small_chunk, sizeof plan->small_chunk);
    }
    plan->chunks = chunks;
    plan->chunk_capacity = capacity;
    return true;
}

void
vnxi_plan_fini(vnxi_plan_t *plan)
{
    if (plan->segments != plan->small) {
        vnxi_recycle_free(plan->segments,
                          plan->segment_capacity * sizeof *plan->segments);
    }
    if (plan->chunks != plan->small_chunk) {
        vnxi_recycle_free(plan->chunks,
                          plan->chunk_capacity * sizeof *plan->chunks);
    }
    plan->segments = NULL;
    plan->chunks = NULL;
    plan->segment_count = plan->chunk_count = 0;
    plan->segment_capacity = plan->chunk_capacity = 0;
}

/* -- Strides -------------------------------------------------------------- */

/* Add one piece to the last segment; false if it does not fit there. */
static inline bool
extend_segment(vnxi_segment_writer_t *writer, uint64_t local, uint64_t remote,
               uint64_t len, uint32_t route)
{
    vnxi_segment_t *last = writer->last;
    if (last == NULL || last->len != len || last->route != route) {
        return false;
    }
    if (last->count == 1) {
        last->local_stride = (int64_t)(local - last->local);
        last->remote_stride = (int64_t)(remote - last->remote);
    } else if (local != writer->next_local || remote != writer->next_remote ||
               last->count == UINT32_MAX) {
        return false;
    }
    last->count++;
    writer->next_local = local + (uint64_t)last->local_stride;
    writer->next_remote = remote + (uint64_t)last->remote_stride;
    return true;
}

/* One piece of at most VNXI_PIECE_MAX bytes. */
static inline void
put_piece(vnxi_segment_writer_t *writer, uint64_t local, uint64_t remote,
          uint64_t len, uint32_t route)
{
    vnxi_plan_t *plan = writer->plan;
    if (extend_segment(writer, local, remote, len, route)) {
        return;
    }
    if (plan->segment_count == plan->segment_capacity &&
        !grow_segments(writer, 1)) {
        return;
    }
    writer->last = &plan->segments[plan->segment_count++];
    *writer->last = (vnxi_segment_t){
        .local = local,
        .remote = remote,
        .len = len,
        .count = 1,
        .route = route,
    };
}

/* `run->count` pieces of at most VNXI_PIECE_MAX bytes each. */
static void
put_run(vnxi_segment_writer_t *writer, const vnxi_segment_run_t *run)
{
    uint64_t local = run->local, remote = run->remote;
    size_t left = run->count;

    while (left > 0 && !writer->failed) {
        put_piece(writer, local, remote, run->len, run->route);
        if (--left == 0 || writer->failed) {
            return;
        }
        local += run->local_stride;
        remote += run->remote_stride;
        vnxi_segment_t *last = writer->last;
        if (last->count == 1) {
            last->local_stride = (int64_t)run->local_stride;
            last->remote_stride = (int64_t)run->remote_stride;
        } else if (last->local_stride != (int64_t)run->local_stride ||
                   last->remote_stride != (int64_t)run->remote_stride) {
            continue; /* the first piece went into another segment */
        }
        size_t room = UINT32_MAX - last->count;
        size_t more = left < room ? left : room;
        last->count += (uint32_t)more;
        left -= more;
        local += run->local_stride * more;
        remote += run->remote_stride * more;
        writer->next_local = local;
        writer->next_remote = remote;
    }
}

/* -- Cutting -------------------------------------------------------------- */

static __attribute__((noinline)) void
put_long_piece(vnxi_segment_writer_t *writer, uint64_t local, uint64_t remote,
               uint64_t len, uint32_t route)
{
    uint64_t whole = len / VNXI_PIECE_MAX * VNXI_PIECE_MAX;
    vnxi_segment_run_t run = {
        .local = local,
        .remote = remote,
        .local_stride = VNXI_PIECE_MAX,
        .remote_stride = VNXI_PIECE_MAX,
        .len = VNXI_PIECE_MAX,
        .count = (size_t)(len / VNXI_PIECE_MAX),
        .route = route,
    };
    put_run(writer, &run);
    if (len > whole) {
        put_piece(writer, local + whole, remote + whole, len - whole, route);
    }
}

/* -- Merging -------------------------------------------------------------- */

static inline void
close_piece(vnxi_segment_writer_t *writer)
{
    const vnxi_open_piece_t *open = &writer->open;
    if (open->len == 0) {
        return;
    }
    writer->pieces++;
    if (open->len <= VNXI_PIECE_MAX) {
        put_piece(writer, open->local, open->remote, open->len, open->route);
    } else {
        put_long_piece(writer, open->local, open->remote, open->len,
                       open->route);
    }
}

static inline void
add_row(vnxi_segment_writer_t *writer, const vnxi_open_piece_t *row)
{
    vnxi_open_piece_t *open = &writer->open;
    if (writer->merge && row->local == open->local + open->len &&
        row->remote == open->remote + open->len && row->route == open->route &&
        open->len != 0) {
        open->len += row->len;
        return;
    }
    close_piece(writer);
    *open = *row;
}

/* The rows of a run between its first and its last; none continues the one
 * before it. */
static void
add_middle(vnxi_segment_writer_t *writer, const vnxi_segment_run_t *run)
{
    close_piece(writer);
    writer->pieces += run->count;
    if (run->len <= VNXI_PIECE_MAX) {
        put_run(writer, run);
        return;
    }
    for (size_t i = 0; i < run->count && !writer->failed; i++) {
        put_long_piece(writer, run->local + i * run->local_stride,
                       run->remote + i * run->remote_stride, run->len,
                       run->route);
    }
}

/* -- Interface for the planner -------------------------------------------- */

void
vnxi_segments_begin(vnxi_segment_writer_t *writer, vnxi_plan_t *plan,
                    size_t rows, bool merge)
{
    *writer =
        (vnxi_segment_writer_t){.plan = plan, .rows = rows, .merge = merge};
    plan->segments = plan->small;
    plan->segment_capacity = SMALL_SEGMENTS;
    plan->chunks = plan->small_chunk;
    plan->chunk_capacity = SMALL_CHUNKS;
}

static inline vnxi_open_piece_t
row_at(const vnxi_segment_rows_t *rows, size_t i)
{
    return (vnxi_open_piece_t){
        .local = rows->local[i],
        .remote = rows->remote[i],
        .len = rows->lens != NULL ? rows->lens[i] : rows->len,
        .route = rows->route,
    };
}

/* Check whether the open piece and the last segment have the length and the
 * form of these rows. */
static bool
is_like_rows(const vnxi_segment_writer_t *writer,
             const vnxi_segment_rows_t *rows)
{
    const vnxi_segment_t *last = writer->last;
    return rows->lens == NULL && rows->len <= VNXI_PIECE_MAX &&
           writer->open.len == rows->len && last != NULL &&
           last->len == rows->len && last->route == writer->open.route;
}

/*
 * Does the work of add_row() for rows from `i` on that are like the previous
 * ones and do not continue them.  Keeps the changing state in registers, which
 * takes a quarter of the time for scattered rows.  Returns the index of the
 * first row that it cannot handle.
 */
static size_t
add_scattered(vnxi_segment_writer_t *writer, const vnxi_segment_rows_t *rows,
              size_t i)
{
    vnxi_plan_t *plan = writer->plan;
    const size_t first = i, count = rows->count;
    const uint64_t len = rows->len, merge_len = writer->merge ? len : 0;
    uint64_t local = writer->open.local, remote = writer->open.remote;

    if (plan->segment_capacity - plan->segment_count < count - i &&
        !grow_segments(writer, count - i)) {
        return count;
    }
    vnxi_segment_t *last = writer->last;
    uint64_t next_local = writer->next_local;
    uint64_t next_remote = writer->next_remote;
    uint32_t pieces = last->count;
    for (; i < count; i++) {
        if (rows->local[i] == local + merge_len &&
            rows->remote[i] == remote + merge_len && merge_len != 0) {
            break;
        }
        if (pieces == 1) {
            uint64_t local_stride = local - last->local;
            uint64_t remote_stride = remote - last->remote;
            last->local_stride = (int64_t)local_stride;
            last->remote_stride = (int64_t)remote_stride;
            last->count = ++pieces;
            next_local = local + local_stride;
            next_remote = remote + remote_stride;
        } else if (local == next_local && remote == next_remote &&
                   pieces != UINT32_MAX) {
            last->count = ++pieces;
            next_local += (uint64_t)last->local_stride;
            next_remote += (uint64_t)last->remote_stride;
        } else {
            *++last = (vnxi_segment_t){.local = local,
                                       .remote = remote,
                                       .len = len,
                                       .count = pieces = 1,
                                       .route = rows->route};
        }
        local = rows->local[i];
        remote = rows->remote[i];
        /* Without this, compilers keep the pair in a vector register and
         * extract both values for every comparison. */
        __asm__("" : "+r"(local), "+r"(remote));
    }
    writer->open.local = local;
    writer->open.remote = remote;
    writer->last = last;
    writer->next_local = next_local;
    writer->next_remote = next_remote;
    writer->pieces += i - first;
    plan->segment_count = (size_t)(last - plan->segments) + 1;
    return i;
}

void
vnxi_segments_rows(vnxi_segment_writer_t *writer,
                   const vnxi_segment_rows_t *rows)
{
    const vnxi_segment_rows_t in = *rows;
    for (size_t i = 0; i < in.count && !writer->failed;) {
        const vnxi_open_piece_t row = row_at(&in, i++);
        add_row(writer, &row);
        if (is_like_rows(writer, &in)) {
            i = add_scattered(writer, &in, i);
        }
    }
    writer->rows_seen += in.count;
}

void
vnxi_segments_run(vnxi_segment_writer_t *writer, const vnxi_segment_run_t *run)
{
    size_t last = run->count - 1;
    vnxi_open_piece_t row = {.local = run->local,
                             .remote = run->remote,
                             .len = run->len,
                             .route = run->route};

    writer->rows_seen += run->count;
    add_row(writer, &row);
    if (last == 0) {
        return;
    }
    if (writer->merge && run->local_stride == run->len &&
        run->remote_stride == run->len) {
        writer->open.len += last * run->len;
        return;
    }
    vnxi_segment_run_t middle = *run;
    middle.local += run->local_stride;
    middle.remote += run->remote_stride;
    middle.count = last - 1;
    add_middle(writer, &middle);
    row.local = run->local + last * run->local_stride;
    row.remote = run->remote + last * run->remote_stride;
    writer->open = row;
}

/* -- Chunks --------------------------------------------------------------- */

typedef struct room {
    uint64_t pieces, bytes; /* left in the current chunk */
} room_t;

static bool
start_chunk(vnxi_plan_t *plan, size_t segment, uint64_t piece, room_t *room)
{
    if (plan->chunk_count == plan->chunk_capacity && !grow_chunks(plan)) {
        return false;
    }
    plan->chunks[plan->chunk_count++] =
        (vnxi_chunk_t){.segment = (uint32_t)segment, .piece = (uint32_t)piece};
    *room = (room_t){VNXI_CHUNK_PIECES, vnxi_plan_chunk_bytes(plan)};
    return true;
}

/* Distribute a segment that does not fit into the current chunk. */
static __attribute__((noinline)) bool
divide_segment(vnxi_plan_t *plan, size_t i, room_t *room)
{
    const vnxi_segment_t *segment = &plan->segments[i];
    for (uint64_t piece = 0; piece < segment->count;) {
        uint64_t fit = room->bytes / segment->len;
        fit = fit < room->pieces ? fit : room->pieces;
        if (fit == 0) {
            if (!start_chunk(plan, i, piece, room)) {
                return false;
            }
            continue;
        }
        fit = fit < segment->count - piece ? fit : segment->count - piece;
        piece += fit;
        room->pieces -= fit;
        room->bytes -= fit * segment->len;
    }
    return true;
}

static bool
make_chunks(vnxi_plan_t *plan)
{
    room_t room = {0, 0};
    for (size_t i = 0; i < plan->segment_count; i++) {
        uint64_t pieces = plan->segments[i].count;
        uint64_t bytes = pieces * plan->segments[i].len; /* < 2^50 */
        if (pieces <= room.pieces && bytes <= room.bytes) {
            room.pieces -= pieces;
            room.bytes -= bytes;
        } else if (!divide_segment(plan, i, &room)) {
            return false;
        }
    }
    return true;
}

bool
vnxi_segments_finish(vnxi_segment_writer_t *writer)
{
    close_piece(writer);
    writer->plan->pieces = writer->pieces;
    return !writer->failed && make_chunks(writer->plan);
}
