/*
 * Design notes.  A shared object calls functions of other objects through
 * slots that the dynamic linker fills in.  Its relocation tables say which
 * slot belongs to which function.  Some slots are pointed at our functions
 * instead, as UCX itself does to observe memory events.
 *
 * A slot may lie in memory that the linker has made read-only.  It is made
 * writable for the change and read-only again afterwards.
 */
#include "engine/ucx_guard.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fork.h"
#include "base/fork_fds.h"
#include "base/log.h"
#include "base/mutex.h"

#if __SIZEOF_POINTER__ == 8
#define SYMBOL_OF(info) ELF64_R_SYM(info)
#else
#define SYMBOL_OF(info) ELF32_R_SYM(info)
#endif

/* -- Sending ---------------------------------------------------------------
 */

static bool
is_end_of_connection(int error)
{
    switch (error) {
    case ECONNABORTED:
    case ECONNREFUSED:
    case ECONNRESET:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENETDOWN:
    case ENETRESET:
    case ENETUNREACH:
    case ENOTCONN:
    case EPIPE:
    case ETIMEDOUT:
        return true;
    default:
        return false;
    }
}

/* Sends of this length are replies with data.  UCX's messages about
 * connections, which it sends in a loop until they are sent, are shorter. */
#define DATA_BYTES 1024u

/* The result for UCX.  After a shutdown, nothing can follow the lost bytes.
 * Data is reported as not sent yet: otherwise UCX would go on with the replies
 * to all that the peer has asked for, which may take minutes, before it
 * receives again. */
static ssize_t
pass_off(int fd, ssize_t sent, size_t len)
{
    if (sent >= 0 || !is_end_of_connection(errno)) {
        return sent;
    }
    shutdown(fd, SHUT_RDWR);
    if (len >= DATA_BYTES) {
        errno = EAGAIN;
        return -1;
    }
    return (ssize_t)len;
}

static ssize_t
guarded_send(int fd, const void *data, size_t len, int flags)
{
    return pass_off(fd, send(fd, data, len, flags), len);
}

static ssize_t
guarded_sendmsg(int fd, const struct msghdr *message, int flags)
{
    size_t len = 0;
    for (size_t i = 0; i < (size_t)message->msg_iovlen; i++) {
        len += message->msg_iov[i].iov_len;
    }
    return pass_off(fd, sendmsg(fd, message, flags), len);
}

/* -- Sockets ---------------------------------------------------------------
 */

static atomic_uint guard_epoch; /* of descriptors; of the last copy */

static int
guarded_socket(int domain, int type, int protocol)
{
    return vnxi_fork_fd_own(socket(domain, type | SOCK_CLOEXEC, protocol));
}

/* What UCX closes need not be a socket.  If the program has closed all
 * descriptors, the number may be another file's. */
static int
guarded_close(int fd)
{
    if (vnxi_fds_lost(atomic_load(&guard_epoch))) {
        return 0;
    }
    vnxi_fork_fd_disown(fd);
    return close(fd);
}

/* -- Accepting -------------------------------------------------------------
 */

static vnxi_mutex_t reserve_lock =
    VNXI_MUTEX_INIT(VNXI_RANK_UCX_GUARD_RESERVE);
static int reserve = -1; /* protected by reserve_lock, as below */
static unsigned reserve_epoch;
static bool warned;

static void
open_reserve_lock_held(void)
{
    if (reserve < 0 || vnxi_fds_lost(reserve_epoch)) {
        reserve_epoch = vnxi_fds_epoch();
        reserve = open("/dev/null", O_RDONLY | O_CLOEXEC);
    }
}

/* Use the reserved descriptor to accept and close all waiting connections.
 * UCX is told about each only once, so they would otherwise wait forever. */
static void
turn_away_lock_held(int listener)
{
    int client;

    if (reserve >= 0 && !vnxi_fds_lost(reserve_epoch)) {
        close(reserve);
        reserve = -1;
        while ((client = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
            close(client);
        }
    }
    open_reserve_lock_held();
}

/* On any error but EAGAIN, UCX closes its listening socket for good. */
static int
guarded_accept(int fd, struct sockaddr *address, socklen_t *len_p)
{
    int client = accept4(fd, address, len_p, SOCK_CLOEXEC);

    if (client >= 0 || (errno != EMFILE && errno != ENFILE)) {
        return vnxi_fork_fd_own(client);
    }
    int cause = errno;
    vnxi_mutex_lock(&reserve_lock);
    if (!warned) {
        warned = true;
        vnxi_log(VNX_LOG_WARNING, NULL,
                 "UCX cannot accept connections of peers: %s",
                 vnxi_errno(cause));
    }
    turn_away_lock_held(fd);
    vnxi_mutex_unlock(&reserve_lock);
    errno = EAGAIN;
    return -1;
}

/* -- Memory ----------------------------------------------------------------
 */

static void *
guarded_malloc(size_t size)
{
    return calloc(1, size);
}

/* -- Finding the object ----------------------------------------------------
 */

typedef struct object {
    ElfW(Addr) within; /* an address within the object */
    ElfW(Addr) base, read_only, read_only_end;
    const ElfW(Dyn) * dynamic;
} object_t;

static int
take_object(struct dl_phdr_info *info, size_t size, void *arg)
{
    object_t *found = arg;
    object_t one = {.within = found->within, .base = info->dlpi_addr};
    bool is_it = false;

    (void)size;
    for (unsigned i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        ElfW(Addr) start = one.base + header->p_vaddr;
        if (header->p_type == PT_LOAD) {
            is_it |= one.within - start < header->p_memsz;
        } else if (header->p_type == PT_DYNAMIC) {
            one.dynamic = (const ElfW(Dyn) *)start;
        } else if (header->p_type == PT_GNU_RELRO) {
            one.read_only = start;
            one.read_only_end = start + header->p_memsz;
        }
    }
    if (is_it) {
        *found = one;
    }
    return is_it;
}

/* -- Its tables ------------------------------------------------------------
 */

typedef struct tables {
    const ElfW(Sym) * symbols;
    const char *names;
    struct {
        const ElfW(Rela) * first;
        size_t size;
    } of_calls, of_data;
} tables_t;

/* glibc has added the base to the addresses in the table; other C libraries
 * have not. */
static const void *
at(const object_t *object, ElfW(Addr) address)
{
    return (const void *)(address < object->base ? address + object->base
                                                 : address);
}

static tables_t
find_tables(const object_t *object)
{
    tables_t tables = {0};
    const ElfW(Dyn) *entry = object->dynamic;

    for (; entry != NULL && entry->d_tag != DT_NULL; entry++) {
        const void *address = at(object, entry->d_un.d_ptr);
        switch (entry->d_tag) {
        case DT_SYMTAB:
            tables.symbols = address;
            break;
        case DT_STRTAB:
            tables.names = address;
            break;
        case DT_JMPREL:
            tables.of_calls.first = address;
            break;
        case DT_PLTRELSZ:
            tables.of_calls.size = entry->d_un.d_val;
            break;
        case DT_RELA:
            tables.of_data.first = address;
            break;
        case DT_RELASZ:
            tables.of_data.size = entry->d_un.d_val;
            break;
        case DT_REL:
            return (tables_t){0}; /* an older kind of table */
        default:
            break;
        }
    }
    return tables.symbols != NULL && tables.names != NULL ? tables
                                                          : (tables_t){0};
}

/* -- Its slots -------------------------------------------------------------
 */

static bool
fill(const object_t *object, ElfW(Addr) slot, uintptr_t function)
{
    ElfW(Addr) size = (ElfW(Addr))sysconf(_SC_PAGESIZE);
    ElfW(Addr) page = slot & ~(size - 1);
    bool read_only =
        object->read_only <= page && page + size <= object->read_only_end;

    if (mprotect((void *)page, size, PROT_READ | PROT_WRITE) != 0) {
        return false;
    }
    atomic_store((_Atomic(uintptr_t) *)slot, function);
    if (read_only) {
        mprotect((void *)page, size, PROT_READ);
    }
    return true;
}

/* Fill all slots of this function and return whether any was filled. function
 * 0: only return whether a slot exists. */
static bool
replace_in(const object_t *object, const tables_t *tables,
           const ElfW(Rela) * first, size_t size, const char *name,
           uintptr_t function)
{
    bool any = false;
    for (size_t i = 0; first != NULL && i < size / sizeof *first; i++) {
        const ElfW(Sym) *symbol = &tables->symbols[SYMBOL_OF(first[i].r_info)];
        if (symbol->st_name != 0 &&
            strcmp(tables->names + symbol->st_name, name) == 0) {
            any |= function == 0 ||
                   fill(object, object->base + first[i].r_offset, function);
        }
    }
    return any;
}

static bool
replace(const object_t *object, const tables_t *tables, const char *name,
        uintptr_t function)
{
    bool calls = replace_in(object, tables, tables->of_calls.first,
                            tables->of_calls.size, name, function);
    bool data = replace_in(object, tables, tables->of_data.first,
                           tables->of_data.size, name, function);
    return calls || data;
}

/* Keep the object loaded, even if all others close their handles. */
static void
stay(const void *within)
{
    Dl_info info;
    if (dladdr(within, &info) != 0) {
        dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
    }
}

static const struct {
    const char *name;
    uintptr_t function;
} guards[] = {
    {"send", (uintptr_t)guarded_send},
    {"sendmsg", (uintptr_t)guarded_sendmsg},
    {"malloc", (uintptr_t)guarded_malloc},
    {"accept", (uintptr_t)guarded_accept},
    {"socket", (uintptr_t)guarded_socket},
    {"close", (uintptr_t)guarded_close},
};

/* While one thread has a page writable, another must not make it read-only. */
static vnxi_mutex_t lock = VNXI_MUTEX_INIT(VNXI_RANK_UCX_GUARD);

/* A thread of the parent may have held them. */
static void
renew_locks_in_child(void)
{
    vnxi_mutex_init(&lock, VNXI_RANK_UCX_GUARD);
    vnxi_mutex_init(&reserve_lock, VNXI_RANK_UCX_GUARD_RESERVE);
}

static bool
guard_lock_held(const void *within)
{
    const size_t count = sizeof guards / sizeof guards[0];
    object_t object = {.within = (ElfW(Addr))within};
    bool possible = dl_iterate_phdr(take_object, &object) != 0;
    tables_t tables = find_tables(&object);

    for (size_t i = 0; possible && i < count; i++) {
        possible = replace(&object, &tables, guards[i].name, 0);
    }
    if (!possible) {
        return false;
    }
    stay((const void *)(uintptr_t)guarded_send);
    atomic_store(&guard_epoch, vnxi_fds_epoch());
    vnxi_mutex_lock(&reserve_lock);
    open_reserve_lock_held();
    vnxi_mutex_unlock(&reserve_lock);
    for (size_t i = 0; possible && i < count; i++) {
        possible =
            replace(&object, &tables, guards[i].name, guards[i].function);
    }
    return possible;
}

/* -- Deciding --------------------------------------------------------------
 */

/* In every minor version of 1.x in this range, the death of a peer served over
 * TCP was seen to abort the process: libucx-cu12 1.19.0 to 1.22.0, and the UCX
 * of nixl-cu12 1.5.1, which is 1.23. */
#define FAULTY_FIRST 19u
#define FAULTY_LAST 23u

#define VARIABLE "VLLM_NIXL_UCX_GUARD"
#define COPIES_MAX 16

typedef enum wish { WISH_NONE, WISH_ON, WISH_OFF } wish_t;

/* Copies with a decision; protected by lock. */
static struct {
    const void *base;
    char why[256];
} copies[COPIES_MAX];
static size_t copy_count;

static wish_t
find_wish(const char *wish)
{
    return wish == NULL             ? WISH_NONE
           : strcmp(wish, "1") == 0 ? WISH_ON
           : strcmp(wish, "0") == 0 ? WISH_OFF
                                    : WISH_NONE;
}

/* Report an invalid value of the variable in the reason and in the log. */
static void
note_wish(char *why, size_t size, const char *wish)
{
    if (wish != NULL && wish[0] != '\0' && find_wish(wish) == WISH_NONE) {
        vnxi_text_add(why, size,
                      "; " VARIABLE "=%.32s is ignored: it must be 0 or 1",
                      wish);
        vnxi_log(VNX_LOG_WARNING, NULL,
                 VARIABLE "=%.32s is ignored: it must be 0 or 1", wish);
    }
}

static bool
has_faults(unsigned major, unsigned minor)
{
    return major == 1 && minor >= FAULTY_FIRST && minor <= FAULTY_LAST;
}

static bool
was_loaded(const vnxi_ucx_loaded_t *before, uintptr_t base)
{
    bool found = before->is_cut;
    for (size_t i = 0; !found && i < before->count; i++) {
        found = before->bases[i] == base;
    }
    return found;
}

/* The copy that a handle leads to. */
typedef struct copy {
    const void *base, *within;
    unsigned major, minor;
    const char *path;
} copy_t;

static bool
find_copy(void *handle, copy_t *copy_p)
{
    void (*get_version)(unsigned *, unsigned *, unsigned *);
    void *version = dlsym(handle, "ucp_get_version");
    void *within = dlsym(handle, "ucs_status_string");
    unsigned release;
    Dl_info info;

    if (version == NULL || within == NULL || dladdr(within, &info) == 0) {
        return false;
    }
    memcpy(&get_version, &version, sizeof get_version);
    get_version(&copy_p->major, &copy_p->minor, &release);
    copy_p->base = info.dli_fbase;
    copy_p->within = within;
    copy_p->path = info.dli_fname;
    return true;
}

static void
decide_lock_held(const copy_t *copy, const vnxi_ucx_loaded_t *before,
                 char *why, size_t size)
{
    const char *value = getenv(VARIABLE);
    wish_t wish = find_wish(value);

    if (wish == WISH_OFF) {
        snprintf(why, size, "off: " VARIABLE "=0");
    } else if (wish == WISH_NONE && !has_faults(copy->major, copy->minor)) {
        snprintf(why, size,
                 "off: UCX %u.%u is not known to need it "
                 "(" VARIABLE "=1 switches it on)",
                 copy->major, copy->minor);
    } else if (wish == WISH_NONE &&
               was_loaded(before, (uintptr_t)copy->base)) {
        snprintf(why, size,
                 "off: another part of this process had loaded this copy of "
                 "UCX before (" VARIABLE "=1 switches it on)");
    } else if (!guard_lock_held(copy->within)) {
        snprintf(why, size, "off: its calls cannot be redirected");
        vnxi_log(VNX_LOG_WARNING, NULL,
                 "%s cannot be guarded: this process may abort if a peer dies "
                 "while reading from it over TCP",
                 copy->path);
    } else if (wish == WISH_ON) {
        snprintf(why, size, "on: " VARIABLE "=1");
    } else {
        snprintf(why, size, "on: UCX %u.%u needs it", copy->major,
                 copy->minor);
    }
    note_wish(why, size, value);
}

static const char *
guard_copy_lock_held(const copy_t *copy, const vnxi_ucx_loaded_t *before)
{
    for (size_t i = 0; i < copy_count; i++) {
        if (copies[i].base == copy->base) {
            return copies[i].why;
        }
    }
    if (copy_count == COPIES_MAX) {
        return "off: this process has too many copies of UCX";
    }
    stay(copy->within); /* otherwise another object could be loaded at its
                           address */
    copies[copy_count].base = copy->base;
    decide_lock_held(copy, before, copies[copy_count].why,
                     sizeof copies[copy_count].why);
    return copies[copy_count++].why;
}

const char *
vnxi_ucx_guard(void *handle, const vnxi_ucx_loaded_t *before)
{
    copy_t copy;

    if (handle == NULL || !find_copy(handle, &copy)) {
        return NULL;
    }
    vnxi_fork_on_child(renew_locks_in_child);
    vnxi_mutex_lock(&lock);
    const char *why = guard_copy_lock_held(&copy, before);
    vnxi_mutex_unlock(&lock);
    return why;
}

/* -- Loaded objects ----------------------------------------------------------
 */

static int
note_object(struct dl_phdr_info *info, size_t size, void *arg)
{
    vnxi_ucx_loaded_t *loaded = arg;

    (void)size;
    if (loaded->count == loaded->size) {
        size_t more = 2 * loaded->size + 64;
        uintptr_t *bases =
            realloc(loaded->bases, more * sizeof loaded->bases[0]);
        if (bases == NULL) {
            loaded->is_cut = true;
            return 1;
        }
        loaded->bases = bases;
        loaded->size = more;
    }
    loaded->bases[loaded->count++] = info->dlpi_addr;
    return 0;
}

void
vnxi_ucx_loaded_find(vnxi_ucx_loaded_t *loaded)
{
    *loaded = (vnxi_ucx_loaded_t){0};
    dl_iterate_phdr(note_object, loaded);
}

void
vnxi_ucx_loaded_free(vnxi_ucx_loaded_t *loaded)
{
    free(loaded->bases);
    *loaded = (vnxi_ucx_loaded_t){0};
}
