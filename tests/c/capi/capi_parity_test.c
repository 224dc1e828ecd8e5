/*
 * Our libnixl_capi.so does what NIXL's does: capi_trace.c calls both and
 * prints what they return.  nixl_1.5.1.txt is what NIXL 1.5.1 has printed.  If
 * VLLM_NIXL_STOCK_LIBRARY names a library of NIXL, it must print the same.
 */
#include "vnx_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define TRACE_MAX (256u << 10)

/* The whole text of a stream.  Owned. */
static char *
read_all(FILE *stream)
{
    char *text = calloc(1, TRACE_MAX);

    assert_non_null(stream);
    assert_non_null(text);
    size_t len = fread(text, 1, TRACE_MAX - 1, stream);
    assert_in_range(len, 1, TRACE_MAX - 2);
    return text;
}

static char *
run_trace(const char *command, int *status_p)
{
    FILE *stream = popen(command, "r"); /* NOLINT(cert-env33-c) */
    char *text = read_all(stream);
    *status_p = pclose(stream);
    return text;
}

/* `tries`: a library that ends its process by a signal gets so many. */
static char *
trace_of(const char *library, const char *kind, unsigned tries)
{
    char command[8192];
    int status;

    snprintf(command, sizeof command, "'%s' '%s' %s", CAPI_TRACE, library,
             kind);
    char *text = run_trace(command, &status);
    while (WIFEXITED(status) && WEXITSTATUS(status) > 128 && --tries > 0) {
        free(text);
        text = run_trace(command, &status);
    }
    if (status != 0) {
        print_error("%s\n%s: status %d\n", text, command, status);
    }
    assert_int_equal(status, 0);
    return text;
}

/* The number of the line at that place. */
static unsigned
line_at(const char *text, size_t place)
{
    unsigned line = 1;

    for (size_t i = 0; i < place; i++) {
        line += text[i] == '\n';
    }
    return line;
}

static void
assert_same_trace(const char *found, const char *expected)
{
    size_t same = 0, line;

    while (found[same] == expected[same] && found[same] != '\0') {
        same++;
    }
    if (found[same] == expected[same]) {
        return;
    }
    for (line = same; line > 0 && found[line - 1] != '\n'; line--) {
    }
    print_error("line %u:\n  %.*s\nNIXL 1.5.1:\n  %.*s\n",
                line_at(found, same), (int)strcspn(found + line, "\n"),
                found + line, (int)strcspn(expected + line, "\n"),
                expected + line);
    fail();
}

static void
check(const char *library, const char *kind, unsigned tries)
{
    FILE *stream = fopen(NIXL_TRACE, "re");
    char *expected = read_all(stream);
    char *found = trace_of(library, kind, tries);

    fclose(stream);
    assert_same_trace(found, expected);
    free(found);
    free(expected);
}

static void
test_our_library_returns_what_nixls_does(void **state)
{
    (void)state;
    check(CAPI_LIBRARY, "", 1);
}

static void
test_nixls_library_returns_what_it_did(void **state)
{
    const char *library = getenv("VLLM_NIXL_STOCK_LIBRARY");
    (void)state;

    if (library == NULL || library[0] == '\0') {
        print_message("SKIP: VLLM_NIXL_STOCK_LIBRARY names no library\n");
        skip();
    }
    /* Its UCX sometimes aborts when an agent is destroyed. */
    check(library, "stock", 5);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_our_library_returns_what_nixls_does),
        cmocka_unit_test(test_nixls_library_returns_what_it_did),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
