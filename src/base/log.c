#include "base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fork.h"
#include "base/mutex.h"
#include "base/words.h"

#define TEXT_MAX 1024
#define AGENT_MAX 128
#define LINE_MAX_LEN (TEXT_MAX + AGENT_MAX + 96)

/* The rate of a place. */
#define WINDOW_S 10
#define WINDOW_NS (WINDOW_S * UINT64_C(1000000000))
#define LINES_MAX 10
#define DEBUG_LINES_MAX 200

static pthread_once_t once = PTHREAD_ONCE_INIT;
static atomic_int threshold = VNX_LOG_WARNING;
static bool is_level_set;        /* constant after `once` */
static char complaint[TEXT_MAX]; /* constant after `once` */
static atomic_bool has_complaint;

static vnxi_mutex_t lock = VNXI_MUTEX_INIT(VNXI_RANK_LOG);
static vnx_log_function_t function; /* lock */
static void *function_context;      /* lock */
/* This thread holds the lock and is in the function. */
static _Thread_local bool is_inside;

/* -- Levels --------------------------------------------------------------- */

static const char *const words[] = {"ERROR", "WARNING", "INFO",  "DEBUG",
                                    "WARN",  "TRACE",   "FATAL", "CRITICAL"};
static const vnx_log_level_t word_levels[] = {
    VNX_LOG_ERROR,   VNX_LOG_WARNING, VNX_LOG_INFO, VNX_LOG_DEBUG,
    VNX_LOG_WARNING, VNX_LOG_DEBUG,   VNX_LOG_OFF,  VNX_LOG_OFF};
#define WORD_COUNT (sizeof words / sizeof *words)

const char *
vnx_log_level_name(vnx_log_level_t level)
{
    static const char *const names[] = {"OFF", "ERROR", "WARNING", "INFO",
                                        "DEBUG"};
    return (unsigned)level <= VNX_LOG_DEBUG ? names[level] : NULL;
}

/* Return whether the variable has set the level. */
static bool
read_level(const char *variable)
{
    const char *value = getenv(variable);
    if (value == NULL || value[0] == '\0') {
        return false;
    }
    for (size_t i = 0; i < WORD_COUNT; i++) {
        if (strcasecmp(value, words[i]) == 0) {
            atomic_store(&threshold, word_levels[i]);
            return true;
        }
    }
    snprintf(complaint, sizeof complaint, "%s has no level '%.32s': %s",
             variable, value, vnxi_words(value, words, WORD_COUNT));
    atomic_store(&has_complaint, true);
    return false;
}

static void
init_in_child(void)
{
    vnxi_mutex_init(&lock, VNXI_RANK_LOG);
    is_inside = false;
}

static void
init(void)
{
    is_level_set =
        read_level("VLLM_NIXL_LOG_LEVEL") || read_level("NIXL_LOG_LEVEL");
    vnxi_fork_on_child(init_in_child);
}

bool
vnxi_log_level_is_set(void)
{
    pthread_once(&once, init);
    return is_level_set;
}

void
vnx_log_set_level(vnx_log_level_t level)
{
    pthread_once(&once, init);
    atomic_store(&threshold, level);
}

vnx_log_level_t
vnx_log_level(void)
{
    pthread_once(&once, init);
    return (vnx_log_level_t)atomic_load(&threshold);
}

/* -- Where lines go ------------------------------------------------------- */

void
vnx_log_set(vnx_log_function_t new_function, void *context)
{
    pthread_once(&once, init);
    if (!is_inside) {
        vnxi_mutex_lock(&lock);
    }
    function = new_function;
    function_context = context;
    if (!is_inside) {
        vnxi_mutex_unlock(&lock);
    }
}

int
vnx_log_format(const vnx_log_line_t *line, char *buffer, int size)
{
    time_t seconds = (time_t)(line->time_ns / 1000000000u);
    unsigned ms = (unsigned)(line->time_ns / 1000000u % 1000u);
    const char *name = vnx_log_level_name(line->level);
    char date[32] = "";
    struct tm parts;

    if (localtime_r(&seconds, &parts) != NULL) {
        strftime(date, sizeof date, "%Y-%m-%d %H:%M:%S", &parts);
    }
    return snprintf(buffer, size > 0 ? (size_t)size : 0,
                    "%s.%03u %s vllm_nixl[%d]%s%s: %s", date, ms,
                    name != NULL ? name : "?", (int)getpid(),
                    line->agent != NULL ? " " : "",
                    line->agent != NULL ? line->agent : "", line->text);
}

/* One write() per line: it takes no lock of stdio's, and lines of several
 * processes are not mixed up. */
void
vnxi_log_write(const vnx_log_line_t *line)
{
    char text[LINE_MAX_LEN];

    int len = vnx_log_format(line, text, sizeof text - 1);
    if (len > (int)sizeof text - 2) {
        len = (int)sizeof text - 2;
    }
    text[len++] = '\n';
    if (write(STDERR_FILENO, text, (size_t)len) < 0) {
        return; /* there is nobody to tell */
    }
}

static void
emit_lock_held(const vnx_log_line_t *line)
{
    if (is_inside || function == NULL) {
        vnxi_log_write(line);
        return;
    }
    is_inside = true;
    function(function_context, line);
    is_inside = false;
}

/* -- Writing lines -------------------------------------------------------- */

static void
make_printable(char *text)
{
    for (; *text != '\0'; text++) {
        if ((unsigned char)*text < 0x20 || *text == 0x7f) {
            *text = '?';
        }
    }
}

static void
add(char text[TEXT_MAX], const char *more)
{
    size_t used = strlen(text), len = strlen(more);
    size_t room = TEXT_MAX - 1 - len;
    memcpy(text + (used < room ? used : room), more, len + 1);
}

/* Count a line of the place; false: it must not be written.  *before_p: the
 * lines that were suppressed before this one; *is_last_p: the next one will
 * be. */
static bool
admit_lock_held(vnxi_log_site_t *site, vnx_log_level_t level,
                unsigned *before_p, bool *is_last_p)
{
    unsigned max = level == VNX_LOG_DEBUG ? DEBUG_LINES_MAX : LINES_MAX;
    uint64_t now = vnxi_clock_ns();

    *before_p = 0;
    if (site->lines == 0 || now - site->since >= WINDOW_NS) {
        *before_p = site->suppressed;
        *site = (vnxi_log_site_t){.since = now};
    } else if (site->lines >= max) {
        site->suppressed++;
        return false;
    }
    *is_last_p = ++site->lines == max;
    return true;
}

static void
emit_text_lock_held(vnx_log_level_t level, const char *agent, char *text)
{
    char name[AGENT_MAX];
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    if (agent != NULL) {
        snprintf(name, sizeof name, "%s", agent);
        make_printable(name);
    }
    make_printable(text);
    const vnx_log_line_t line = {
        .level = level,
        .time_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec,
        .thread = syscall(SYS_gettid),
        .agent = agent != NULL ? name : NULL,
        .text = text,
    };
    emit_lock_held(&line);
}

static void
complain_lock_held(void)
{
    if (atomic_exchange(&has_complaint, false) &&
        VNX_LOG_WARNING <= atomic_load(&threshold)) {
        emit_text_lock_held(VNX_LOG_WARNING, NULL, complaint);
    }
}

static void
log_lock_held(vnxi_log_site_t *site, vnx_log_level_t level, const char *agent,
              char text[TEXT_MAX])
{
    char more[80];
    bool is_last = false;
    unsigned before = 0;

    if (!admit_lock_held(site, level, &before, &is_last)) {
        return;
    }
    if (before > 0) {
        snprintf(more, sizeof more,
                 " (%u lines like this one were suppressed)", before);
        add(text, more);
    }
    if (is_last) {
        snprintf(more, sizeof more,
                 " (more lines like this one are suppressed for %d s)",
                 WINDOW_S);
        add(text, more);
    }
    emit_text_lock_held(level, agent, text);
}

void
vnxi_log_at(vnxi_log_site_t *site, vnx_log_level_t level, const char *agent,
            const char *format, ...)
{
    char text[TEXT_MAX];
    va_list args;

    pthread_once(&once, init);
    bool is_on = (int)level <= atomic_load(&threshold);
    if (!is_on && !atomic_load(&has_complaint)) {
        return;
    }
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!is_inside) {
        vnxi_mutex_lock(&lock);
    }
    complain_lock_held();
    if (is_on) {
        log_lock_held(site, level, agent, text);
    }
    if (!is_inside) {
        vnxi_mutex_unlock(&lock);
    }
}

void
vnx_log_error(const char *agent, const vnx_error_t *error)
{
    char text[TEXT_MAX];

    vnx_error_format(error, text, sizeof text);
    vnxi_log(VNX_LOG_WARNING, agent, "%s", text);
}
