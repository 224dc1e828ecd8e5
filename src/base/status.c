#include <vnx/status.h>

#include <stddef.h>

typedef struct row {
    vnx_status_t status;
    const char *name, *text, *python_class;
} row_t;

static const row_t rows[] = {
#define ROW(sym, num, name, text, pyclass) {sym, name, text, pyclass},
    VNX_STATUS_TABLE(ROW)
#undef ROW
};

/* Returned for numbers that are not in the table. */
static const row_t unknown = {VNX_ERR_UNKNOWN, "NIXL_ERR_UNKNOWN",
                              "unknown error", "nixlUnknownError"};

static const row_t *
find(vnx_status_t status)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (rows[i].status == status) {
            return &rows[i];
        }
    }
    return &unknown;
}

const char *
vnx_status_name(vnx_status_t status)
{
    return find(status)->name;
}

const char *
vnx_status_text(vnx_status_t status)
{
    return find(status)->text;
}

const char *
vnx_status_python_class(vnx_status_t status)
{
    return find(status)->python_class;
}
