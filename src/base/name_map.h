/*
 * A map from names (byte strings) to pointers.  Not thread-safe: its owner's
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

/* Set (value != NULL).  The name is borrowed for as long as it stays in the
 * map; where the name was there, its bytes are replaced by the new ones too.
 * False: no memory. */
bool vnxi_name_map_set(vnxi_name_map_t *map, const void *name, size_t name_len,
                       void *value);

/* Take out; returns the value, or NULL where there was none. */
void *vnxi_name_map_remove(vnxi_name_map_t *map, const void *name,
                           size_t name_len);

/* Iterate: start with *cursor_p = 0; NULL at the end.  Removing the value just
 * returned starts the iteration anew at best, so collect first. */
void *vnxi_name_map_next(const vnxi_name_map_t *map, size_t *cursor_p);

void vnxi_name_map_fini(vnxi_name_map_t *map);

#endif
