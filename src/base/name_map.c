#include "base/name_map.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"

/* Mix the hash at the end: names are few, short and often similar. */
static uint64_t
hash_name(const void *name, size_t len)
{
    uint64_t hash = vnxi_hash(name, len);
    return hash ^ (hash >> 32);
}

/* The slot of the name, or the free slot where it belongs. */
static size_t
find_slot(const vnxi_name_map_t *map, const void *name, size_t len,
          uint64_t hash)
{
    size_t mask = map->capacity - 1;
    size_t i = (size_t)hash & mask;
    while (map->entries[i].value != NULL) {
        const vnxi_name_map_entry_t *entry = &map->entries[i];
        if (entry->hash == hash && entry->name_len == len &&
            memcmp(entry->name, name, len) == 0) {
            break;
        }
        i = (i + 1) & mask;
    }
    return i;
}

void *
vnxi_name_map_get(const vnxi_name_map_t *map, const void *name,
                  size_t name_len)
{
    if (map->count == 0) {
        return NULL;
    }
    uint64_t hash = hash_name(name, name_len);
    return map->entries[find_slot(map, name, name_len, hash)].value;
}

static bool
map_grow(vnxi_name_map_t *map)
{
    vnxi_name_map_t bigger = {.capacity =
                                  map->capacity ? 2 * map->capacity : 8};
    bigger.entries = calloc(bigger.capacity, sizeof *bigger.entries);
    if (bigger.entries == NULL) {
        return false;
    }
    for (size_t i = 0; i < map->capacity; i++) {
        const vnxi_name_map_entry_t *entry = &map->entries[i];
        if (entry->value != NULL) {
            bigger.entries[find_slot(&bigger, entry->name, entry->name_len,
                                     entry->hash)] = *entry;
        }
    }
    bigger.count = map->count;
    free(map->entries);
    *map = bigger;
    return true;
}

bool
vnxi_name_map_reserve(vnxi_name_map_t *map, size_t more)
{
    while (4 * (map->count + more) > 3 * map->capacity) {
        if (!map_grow(map)) {
            return false;
        }
    }
    return true;
}

bool
vnxi_name_map_set(vnxi_name_map_t *map, const void *name, size_t name_len,
                  void *value)
{
    if (!vnxi_name_map_reserve(map, 1)) {
        return false;
    }
    uint64_t hash = hash_name(name, name_len);
    vnxi_name_map_entry_t *entry =
        &map->entries[find_slot(map, name, name_len, hash)];
    map->count += entry->value == NULL;
    *entry = (vnxi_name_map_entry_t){value, name, name_len, hash};
    return true;
}

/* Move later entries of the probe sequence into the hole, so that no search
 * ends too early. */
static void
close_hole(vnxi_name_map_t *map, size_t hole)
{
    size_t mask = map->capacity - 1;
    for (size_t i = (hole + 1) & mask; map->entries[i].value != NULL;
         i = (i + 1) & mask) {
        size_t home = (size_t)map->entries[i].hash & mask;
        if (((i - home) & mask) >= ((i - hole) & mask)) {
            map->entries[hole] = map->entries[i];
            map->entries[i].value = NULL;
            hole = i;
        }
    }
}

void *
vnxi_name_map_remove(vnxi_name_map_t *map, const void *name, size_t name_len)
{
    if (map->count == 0) {
        return NULL;
    }
    size_t i = find_slot(map, name, name_len, hash_name(name, name_len));
    void *value = map->entries[i].value;
    if (value != NULL) {
        map->entries[i].value = NULL;
        map->count--;
        close_hole(map, i);
    }
    return value;
}

void *
vnxi_name_map_next(const vnxi_name_map_t *map, size_t *cursor_p)
{
    while (*cursor_p < map->capacity) {
        void *value = map->entries[(*cursor_p)++].value;
        if (value != NULL) {
            return value;
        }
    }
    return NULL;
}

void
vnxi_name_map_fini(vnxi_name_map_t *map)
{
    free(map->entries);
    *map = (vnxi_name_map_t){0};
}
