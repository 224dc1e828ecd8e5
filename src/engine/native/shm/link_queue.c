#include "engine/native/shm/link_queue.h"

#include <stdlib.h>
#include <string.h>

/* Short messages share a block, so that the byte count is close to the
 * allocated memory, and one system call sends many of them. */
#define BLOCK_MIN (32u << 10)

struct vnxi_link_block {
    vnxi_link_block_t *next;
    size_t at, end, capacity; /* data[at .. end) has to be sent */
    unsigned char data[];
};

static vnxi_link_block_t *
queue_grow(vnxi_link_queue_t *queue, size_t len)
{
    size_t capacity = len > BLOCK_MIN ? len : BLOCK_MIN;
    vnxi_link_block_t *block = malloc(sizeof *block + capacity);

    if (block == NULL) {
        return NULL;
    }
    block->next = NULL;
    block->at = block->end = 0;
    block->capacity = capacity;
    if (queue->tail != NULL) {
        queue->tail->next = block;
    } else {
        queue->head = block;
    }
    queue->tail = block;
    return block;
}

bool
vnxi_link_queue_add(vnxi_link_queue_t *queue, const void *data, size_t len)
{
    vnxi_link_block_t *block = queue->tail;

    if (len == 0) {
        return true;
    }
    if (block == NULL || block->capacity - block->end < len) {
        block = queue_grow(queue, len);
    }
    if (block == NULL) {
        return false;
    }
    memcpy(block->data + block->end, data, len);
    block->end += len;
    queue->bytes += len;
    return true;
}

const void *
vnxi_link_queue_front(const vnxi_link_queue_t *queue, size_t *len_p)
{
    const vnxi_link_block_t *block = queue->head;

    *len_p = block->end - block->at;
    return block->data + block->at;
}

void
vnxi_link_queue_consume(vnxi_link_queue_t *queue, size_t len)
{
    vnxi_link_block_t *block = queue->head;

    block->at += len;
    queue->bytes -= len;
    if (block->at < block->end) {
        return;
    }
    queue->head = block->next;
    if (queue->head == NULL) {
        queue->tail = NULL;
    }
    free(block);
}

void
vnxi_link_queue_clear(vnxi_link_queue_t *queue)
{
    while (queue->head != NULL) {
        vnxi_link_queue_consume(queue, queue->head->end - queue->head->at);
    }
}
