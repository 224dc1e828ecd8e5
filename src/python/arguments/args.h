/*
 * Arguments of METH_FASTCALL | METH_KEYWORDS methods, and how such a method is
 * defined: docstring, parameters and code in one place, each parameter named
 * once.
 *
 *     VNXI_PY_AGENT_METHOD(
 *         transfer,
 *         (REQUIRED(handle), OPTIONAL(notif_msg, "b''"), STAR,
 *          KEYWORD(timeout, "None")),
 *         "Start a transfer, or start it again.")
 *     {
 *         ... args->handle, args->timeout ...
 *     }
 *
 * The parameters make the first line of the docstring, which
 * inspect.signature() reads, the table that the parser reads, and the fields
 * of `args`.  A default is only text for the docstring: a left-out argument is
 * NULL.  Each parameter must also be in VNXI_PY_NAMES (names.h).
 *
 * The body sees three variables:
 *   self       the object, after the type's own check
 *   args       the arguments, borrowed from the caller
 *   operation  the name of the method in messages
 *
 * The method enters the type's method table by one line in the list of names
 * in the type's header.  Without it the compiler misses a prototype.
 */
#ifndef VNXI_PYTHON_ARGS_H
#define VNXI_PYTHON_ARGS_H

#include "python/module.h"

#define VNXI_PY_ARGS_MAX 8

/* Keywords are compared by pointer first, since the compiler interned those of
 * the caller too. */
typedef struct vnxi_py_signature {
    const char *name; /* of the method; also the operation in messages */
    uint8_t count;    /* parameters, positional or by keyword */
    uint8_t required; /* the first ones, which have no default */
    uint8_t keyword;  /* the last ones, which are given by keyword only */
    uint8_t params[VNXI_PY_ARGS_MAX]; /* vnxi_py_name_t */
} vnxi_py_signature_t;

bool vnxi_py_args_parse_slow(const vnxi_py_state_t *state,
                             const vnxi_py_signature_t *signature,
                             PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames, PyObject **values);

/* Sort the arguments into `values` (signature->count of them, borrowed; NULL
 * if left out).  false: TypeError, with the text that Python uses. */
static inline bool
vnxi_py_args_parse(const vnxi_py_state_t *state,
                   const vnxi_py_signature_t *signature, PyObject *const *args,
                   Py_ssize_t nargs, PyObject *kwnames, PyObject **values)
{
    if (kwnames != NULL || nargs < signature->required ||
        nargs > signature->count - signature->keyword) {
        return vnxi_py_args_parse_slow(state, signature, args, nargs, kwnames,
                                       values);
    }
    Py_ssize_t i = 0;
    for (; i < nargs; i++) {
        values[i] = args[i];
    }
    for (; i < signature->count; i++) {
        values[i] = NULL;
    }
    return true;
}

/* Return the truth value of an argument; `fallback` if it was left out.  -1:
 * exception. */
static inline int
vnxi_py_args_bool(PyObject *value, bool fallback)
{
    if (value == NULL) {
        return fallback;
    }
    return value == Py_True    ? 1
           : value == Py_False ? 0
                               : PyObject_IsTrue(value);
}

/* -- Defining a method ---------------------------------------------------- */

/* Names and types: NOLINTBEGIN(bugprone-macro-parentheses) */

/* Put F in front of each of at most 8 arguments. */
#define VNXI_PY_EACH_0(F)
#define VNXI_PY_EACH_1(F, a) F##a
#define VNXI_PY_EACH_2(F, a, ...) F##a VNXI_PY_EACH_1(F, __VA_ARGS__)
#define VNXI_PY_EACH_3(F, a, ...) F##a VNXI_PY_EACH_2(F, __VA_ARGS__)
#define VNXI_PY_EACH_4(F, a, ...) F##a VNXI_PY_EACH_3(F, __VA_ARGS__)
#define VNXI_PY_EACH_5(F, a, ...) F##a VNXI_PY_EACH_4(F, __VA_ARGS__)
#define VNXI_PY_EACH_6(F, a, ...) F##a VNXI_PY_EACH_5(F, __VA_ARGS__)
#define VNXI_PY_EACH_7(F, a, ...) F##a VNXI_PY_EACH_6(F, __VA_ARGS__)
#define VNXI_PY_EACH_8(F, a, ...) F##a VNXI_PY_EACH_7(F, __VA_ARGS__)
#define VNXI_PY_TENTH(a, b, c, d, e, f, g, h, i, j, ...) j
#define VNXI_PY_EACH(F, ...)                                        \
    VNXI_PY_TENTH(F, ##__VA_ARGS__, VNXI_PY_EACH_8, VNXI_PY_EACH_7, \
                  VNXI_PY_EACH_6, VNXI_PY_EACH_5, VNXI_PY_EACH_4,   \
                  VNXI_PY_EACH_3, VNXI_PY_EACH_2, VNXI_PY_EACH_1,   \
                  VNXI_PY_EACH_0)                                   \
    (F, ##__VA_ARGS__)

#define VNXI_PY_TEXT(...) VNXI_PY_EACH(VNXI_PY_TEXT_, ##__VA_ARGS__)
#define VNXI_PY_TEXT_REQUIRED(name) ", " #name
#define VNXI_PY_TEXT_OPTIONAL(name, default) ", " #name "=" default
#define VNXI_PY_TEXT_KEYWORD(name, default) ", " #name "=" default
#define VNXI_PY_TEXT_STAR ", *"

#define VNXI_PY_FIELDS(...) VNXI_PY_EACH(VNXI_PY_FIELD_, ##__VA_ARGS__)
#define VNXI_PY_FIELD_REQUIRED(name) PyObject *name;
#define VNXI_PY_FIELD_OPTIONAL(name, default) PyObject *name;
#define VNXI_PY_FIELD_KEYWORD(name, default) PyObject *name;
#define VNXI_PY_FIELD_STAR

#define VNXI_PY_COUNT(...) (sizeof((uint8_t[]){VNXI_PY_PARAMS(__VA_ARGS__)}))
#define VNXI_PY_PARAMS(...) VNXI_PY_EACH(VNXI_PY_PARAM_, ##__VA_ARGS__)
#define VNXI_PY_PARAM_REQUIRED(name) VNXI_PY_NAME_##name,
#define VNXI_PY_PARAM_OPTIONAL(name, default) VNXI_PY_NAME_##name,
#define VNXI_PY_PARAM_KEYWORD(name, default) VNXI_PY_NAME_##name,
#define VNXI_PY_PARAM_STAR

/* The number of required parameters, plus 16 times the number of keyword ones.
 */
#define VNXI_PY_KINDS(...) (0 VNXI_PY_EACH(VNXI_PY_KIND_, ##__VA_ARGS__))
#define VNXI_PY_KIND_REQUIRED(name) +1
#define VNXI_PY_KIND_OPTIONAL(name, default)
#define VNXI_PY_KIND_KEYWORD(name, default) +16
#define VNXI_PY_KIND_STAR

/* The check of a type whose objects are always usable. */
static inline bool
vnxi_py_is_usable(const void *self)
{
    (void)self;
    return true;
}

/* A method of objects self_t, which have a field `state`.  `check` says
 * whether an object may be used, or raises.  A function body follows. */
#define VNXI_PY_METHOD(prefix, self_t, check, method, title, parameters, doc) \
    const char prefix##method##_doc[] =                                       \
        #method "($self" VNXI_PY_TEXT parameters ")\n--\n\n" doc;             \
    typedef union prefix##method##_args {                                     \
        struct {                                                              \
            VNXI_PY_FIELDS parameters                                         \
        };                                                                    \
        PyObject *values[VNXI_PY_ARGS_MAX];                                   \
    } prefix##method##_args_t;                                                \
    static PyObject *prefix##method##_impl(                                   \
        self_t *self, const prefix##method##_args_t *args,                    \
        const char *operation);                                               \
    PyObject *prefix##method(PyObject *op, PyObject *const *given,            \
                             Py_ssize_t nargs, PyObject *kwnames)             \
    {                                                                         \
        static const vnxi_py_signature_t signature = {                        \
            .name = title,                                                    \
            .count = VNXI_PY_COUNT parameters,                                \
            .required = VNXI_PY_KINDS parameters & 0xf,                       \
            .keyword = VNXI_PY_KINDS parameters >> 4,                         \
            .params = {VNXI_PY_PARAMS parameters},                            \
        };                                                                    \
        self_t *self = (self_t *)op;                                          \
        prefix##method##_args_t args;                                         \
        if (!check(self) ||                                                   \
            !vnxi_py_args_parse(self->state, &signature, given, nargs,        \
                                kwnames, args.values)) {                      \
            return NULL;                                                      \
        }                                                                     \
        return prefix##method##_impl(self, &args, signature.name);            \
    }                                                                         \
    static inline PyObject *prefix##method##_impl(                            \
        self_t *self __attribute__((unused)),                                 \
        const prefix##method##_args_t *args __attribute__((unused)),          \
        const char *operation __attribute__((unused)))

/* Each name in the type's header and in its method table. */
#define VNXI_PY_METHOD_DECLARE(prefix, name)                     \
    extern const char prefix##name##_doc[];                      \
    PyObject *prefix##name(PyObject *op, PyObject *const *given, \
                           Py_ssize_t nargs, PyObject *kwnames);
#define VNXI_PY_METHOD_ROW(prefix, name)               \
    {#name, (PyCFunction)(void (*)(void))prefix##name, \
     METH_FASTCALL | METH_KEYWORDS, prefix##name##_doc},
/* NOLINTEND(bugprone-macro-parentheses) */

#endif
