/*
 * Directories that may hold libraries installed as Python packages, like
 * site-packages.  Only Python knows them.  The Python layer sets them before
 * it creates the first agent.  In a program without Python it is the one from
 * which this library was loaded, if it was.
 */
#ifndef VNXI_BASE_SEARCH_PATH_H
#define VNXI_BASE_SEARCH_PATH_H

#include <stdbool.h>
#include <stddef.h>

/* Replace the directories (copied).  False: no memory; nothing has changed.
 * Any thread. */
bool vnxi_search_path_set(const char *const *dirs, size_t count);

/* The first file that matches `pattern` (glob(3), relative:
 * "libucx/lib/libucp.so.0"), directory by directory.  Owned: free().  NULL: no
 * such file, or no memory.  Any thread. */
char *vnxi_search_path_find(const char *pattern);

#endif
