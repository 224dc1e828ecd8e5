/*
 * A map from names (byte strings) to pointers.  Not thread-safe: the owner's
 * lock protects it.
 */
#ifndef VNXI_BASE_NAME_MAP_H
#define VNXI_BASE_NAME_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct vnxi_name_map_entry {
    void *value; /* NULL: free */
    const void *name;
    size_t name_len;
    uint64_t hash;
} vnxi_name_map_entry_t;

/* All zeros: an empty map. */
typedef struct vnxi_name_map {
    vnxi_name_map_entry_t *entries;
    size_t capacity; /* 0 or a power of two */
    size_t count;
} vnxi_name_map_t;

/* The value, or NULL. */
void *vnxi_name_map_get(const vnxi_name_map_t *map, const void *name,
                        size_t name_len);

/* Make room for `more` names, so that setting them cannot fail.  False: no
 * memory. */
bool vnxi_name_map_reserve(vnxi_name_map_t *map, size_t more);

/* Set the value (not NULL) of a name.  The map borrows the name until it is
 * removed or set again; setting an existing name also replaces the borrowed
 * bytes.  False: no memory. */
bool vnxi_name_map_set(vnxi_name_map_t *map, const void *name, size_t name_len,
                       void *value);

/* Remove a name.  Returns its value, or NULL if it was not in the map. */
void *vnxi_name_map_remove(vnxi_name_map_t *map, const void *name,
                           size_t name_len);

/* Iterate: start with *cursor_p = 0; NULL at the end.  Removing entries during
 * an iteration may restart it, so collect first and remove later. */
void *vnxi_name_map_next(const vnxi_name_map_t *map, size_t *cursor_p);

void vnxi_name_map_fini(vnxi_name_map_t *map);

#endif
