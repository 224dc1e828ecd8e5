/*
 * Where libraries that came as Python packages may lie: directories like
 * site-packages, which only Python knows.  The Python layer sets them before
 * the first agent is made; a C program need not.
 */
#ifndef VNXI_BASE_SEARCH_PATH_H
#define VNXI_BASE_SEARCH_PATH_H

#include <stdbool.h>
#include <stddef.h>

/* Replace the directories (copied).  False: no memory, and nothing changed.
 * Any thread. */
bool vnxi_search_path_set(const char *const *dirs, size_t count);

/* The first file, directory by directory, that matches `pattern` (glob(3),
 * relative: "libucx/lib/libucp.so.0").  Owned: free().  NULL: there is none,
 * or no memory.  Any thread. */
char *vnxi_search_path_find(const char *pattern);

#endif
