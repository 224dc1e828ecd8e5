/* Checks in a forked child, where cmocka's would go on with the next test. */
#ifndef CHILD_CHECK_H
#define CHILD_CHECK_H

#include <stdio.h>
#include <unistd.h>

/* The child ends, and reports the line of the first check that failed. */
#define CHECK(condition)                                             \
    do {                                                             \
        if (!(condition)) {                                          \
            fprintf(stderr, "in the child, line %d: %s\n", __LINE__, \
                    #condition);                                     \
            _exit(1);                                                \
        }                                                            \
    } while (0)

#endif
