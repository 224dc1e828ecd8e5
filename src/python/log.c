#include "python/log.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/fork.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/thread.h"

#define LINES_MAX 1000 /* in the queue */
#define END_WAIT_NS (5 * UINT64_C(1000000000))

typedef struct line {
    struct line *next;
    vnx_log_line_t line; /* its texts follow the struct */
    char thread_name[16];
} line_t;

static vnxi_mutex_t lock = VNXI_MUTEX_INIT(VNXI_RANK_LOG_QUEUE);
static vnxi_cond_t changed; /* initialised by attach() */
/* Guarded by `lock`: */
static bool is_attached;
static bool is_running; /* the thread exists */
static bool is_ending;  /* the thread is to end when the queue is empty */
static bool is_busy;    /* the thread passes on lines that it took */
static line_t *first, **last_p = &first;
static unsigned count; /* in the queue */
static unsigned lost;  /* the queue was full */
static pthread_t thread;

/* -- The queue ------------------------------------------------------------ */

static char *
copy_text(char *to, const char *text, const char **copy_p)
{
    size_t size = strlen(text) + 1;

    memcpy(to, text, size);
    *copy_p = to;
    return to + size;
}

static line_t *
copy_line(const vnx_log_line_t *line)
{
    size_t agent_size = line->agent != NULL ? strlen(line->agent) + 1 : 0;
    line_t *copy = malloc(sizeof *copy + agent_size + strlen(line->text) + 1);

    if (copy == NULL) {
        return NULL;
    }
    copy->next = NULL;
    copy->line = *line;
    char *at = copy_text((char *)(copy + 1), line->text, &copy->line.text);
    if (line->agent != NULL) {
        copy_text(at, line->agent, &copy->line.agent);
    }
    pthread_getname_np(pthread_self(), copy->thread_name,
                       sizeof copy->thread_name);
    return copy;
}

static void *thread_main(void *unused);

static bool
start_lock_held(void)
{
    if (!is_running && vnxi_thread_start(&thread, thread_main, NULL) == 0) {
        pthread_setname_np(thread, "vnx-log");
        is_running = true;
    }
    return is_running;
}

/* False: the line cannot be passed on. */
static bool
enqueue_lock_held(const vnx_log_line_t *line)
{
    if (!is_attached || !start_lock_held()) {
        return false;
    }
    line_t *copy = count < LINES_MAX ? copy_line(line) : NULL;
    if (copy == NULL) {
        lost++;
        return true;
    }
    *last_p = copy;
    last_p = &copy->next;
    count++;
    vnxi_cond_broadcast(&changed);
    return true;
}

static void
on_line(void *context, const vnx_log_line_t *line)
{
    (void)context;
    vnxi_mutex_lock(&lock);
    bool is_queued = enqueue_lock_held(line);
    vnxi_mutex_unlock(&lock);
    if (!is_queued) {
        vnxi_log_write(line);
    }
}

/* Sleep until there is a line; NULL: the thread is to end. */
static line_t *
take_lock_held(unsigned *lost_p)
{
    is_busy = false;
    vnxi_cond_broadcast(&changed);
    while (first == NULL && !is_ending) {
        vnxi_cond_wait(&changed, &lock);
    }
    line_t *chain = first;
    is_busy = chain != NULL;
    first = NULL;
    last_p = &first;
    count = 0;
    *lost_p = lost;
    lost = 0;
    return chain;
}

/* -- Passing on ----------------------------------------------------------- */

static int
python_level(vnx_log_level_t level)
{
    static const int levels[] = {[VNX_LOG_OFF] = 50, /* CRITICAL */
                                 [VNX_LOG_ERROR] = 40,
                                 [VNX_LOG_WARNING] = 30,
                                 [VNX_LOG_INFO] = 20,
                                 [VNX_LOG_DEBUG] = 10};
    return levels[level];
}

static PyObject *
decode(const char *text)
{
    return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text),
                                "backslashreplace");
}

static PyObject *
call_emit(const line_t *line)
{
    PyObject *result = NULL;
    PyObject *module = PyImport_ImportModule("vllm_nixl._log");
    PyObject *agent = line->line.agent != NULL ? decode(line->line.agent)
                                               : Py_NewRef(Py_None);
    PyObject *text = decode(line->line.text);

    if (module != NULL && agent != NULL && text != NULL) {
        result = PyObject_CallMethod(
            module, "emit", "iKLsOO", python_level(line->line.level),
            (unsigned long long)line->line.time_ns,
            (long long)line->line.thread, line->thread_name, agent, text);
    }
    Py_XDECREF(text);
    Py_XDECREF(agent);
    Py_XDECREF(module);
    return result;
}

/* Holds the GIL. */
static void
emit(const line_t *line)
{
    PyObject *result = call_emit(line);

    if (result == NULL) {
        PyErr_WriteUnraisable(NULL);
        vnxi_log_write(&line->line);
    }
    Py_XDECREF(result);
}

static void
emit_all(line_t *chain, unsigned lost_lines)
{
    while (chain != NULL) {
        line_t *line = chain;
        chain = line->next;
        emit(line);
        free(line);
    }
    if (lost_lines > 0) {
        /* Not by on_line(), which would queue the line. */
        char text[64];
        snprintf(text, sizeof text, "%u lines of the log were lost",
                 lost_lines);
        line_t line = {.line = {.level = VNX_LOG_WARNING,
                                .time_ns = vnxi_clock_wall_us() * 1000u,
                                .text = text},
                       .thread_name = "vnx-log"};
        emit(&line);
    }
}

static void *
thread_main(void *unused)
{
    unsigned lost_lines;
    line_t *chain;

    vnxi_mutex_lock(&lock);
    while ((chain = take_lock_held(&lost_lines)) != NULL) {
        vnxi_mutex_unlock(&lock);
        PyGILState_STATE state = PyGILState_Ensure();
        emit_all(chain, lost_lines);
        PyGILState_Release(state);
        vnxi_mutex_lock(&lock);
    }
    is_running = false;
    vnxi_cond_broadcast(&changed);
    vnxi_mutex_unlock(&lock);
    return unused;
}

/* -- Life ----------------------------------------------------------------- */

/* The parent passes on what is in the queue.  Async-signal-safe. */
static void
forget_in_child(void)
{
    vnxi_mutex_init(&lock, VNXI_RANK_LOG_QUEUE);
    vnxi_cond_init(&changed);
    is_running = is_ending = is_busy = false;
    first = NULL;
    last_p = &first;
    count = lost = 0;
}

static bool
is_main(void)
{
    return PyInterpreterState_Get() == PyInterpreterState_Main();
}

void
vnxi_py_log_attach(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    if (!is_main()) {
        return;
    }
    pthread_once(&once, forget_in_child);
    vnxi_fork_on_child(forget_in_child);
    vnxi_mutex_lock(&lock);
    is_attached = true;
    is_ending = false;
    vnxi_mutex_unlock(&lock);
    vnx_log_set(on_line, NULL);
}

/* Wait until `is_done` returns true, but not for ever: a logging handler of
 * the program may hang.  Drops the GIL. */
static bool
wait_until(bool (*is_done_lock_held)(void))
{
    struct timespec until =
        vnxi_clock_timespec(vnxi_clock_deadline(END_WAIT_NS));
    int ret = 0;

    Py_BEGIN_ALLOW_THREADS;
    vnxi_mutex_lock(&lock);
    while (!is_done_lock_held() && ret == 0) {
        ret = vnxi_cond_timedwait(&changed, &lock, &until);
    }
    vnxi_mutex_unlock(&lock);
    Py_END_ALLOW_THREADS;
    return ret == 0;
}

static bool
is_idle_lock_held(void)
{
    return (first == NULL && !is_busy) || !is_running;
}

static bool
has_ended_lock_held(void)
{
    return !is_running;
}

void
vnxi_py_log_detach(void)
{
    vnxi_mutex_lock(&lock);
    bool was_running = is_running;
    is_attached = false;
    is_ending = true;
    vnxi_cond_broadcast(&changed);
    vnxi_mutex_unlock(&lock);
    if (!was_running) {
        return;
    }
    if (wait_until(has_ended_lock_held)) {
        pthread_join(thread, NULL);
    } else {
        pthread_detach(thread);
    }
}

/* -- For vllm_nixl._log --------------------------------------------------- */

static PyObject *
flush(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    vnxi_mutex_lock(&lock);
    bool is_own = is_running && pthread_equal(thread, pthread_self());
    vnxi_mutex_unlock(&lock);
    if (is_main() && !is_own) {
        wait_until(is_idle_lock_held);
    }
    Py_RETURN_NONE;
}

static PyObject *
get_level(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return vnxi_log_level_is_set()
               ? PyLong_FromLong(python_level(vnx_log_level()))
               : Py_NewRef(Py_None);
}

static PyObject *
set_level(PyObject *module, PyObject *number)
{
    vnx_log_level_t level = VNX_LOG_OFF;

    (void)module;
    long wanted = PyLong_AsLong(number);
    if (wanted == -1 && PyErr_Occurred()) {
        return NULL;
    }
    while (level < VNX_LOG_DEBUG &&
           python_level((vnx_log_level_t)(level + 1)) >= wanted) {
        level++;
    }
    if (is_main()) {
        vnx_log_set_level(level);
    }
    Py_RETURN_NONE;
}

PyMethodDef vnxi_py_log_methods[] = {
    {"_log_flush", flush, METH_NOARGS,
     PyDoc_STR("Wait until the log's lines have been passed on.")},
    {"_log_level", get_level, METH_NOARGS,
     PyDoc_STR("The log's level, if the environment has set it, else None.")},
    {"_log_set_level", set_level, METH_O,
     PyDoc_STR("Log lines of this level of Python's logging and above.")},
    {NULL, NULL, 0, NULL},
};
