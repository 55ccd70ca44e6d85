/* Counts the instructions that qemu-user executes: a TCG plugin of qemu (plugin API version 1).
 *
 *     cc -shared -fPIC -O2 -o insn_count.so insn_count.c
 *     qemu-aarch64 -plugin ./insn_count.so,counts=COUNTS PROGRAM
 *
 * Each time the program asks for its parent's process id (getppid, which libraries have no reason
 * to call), one line with the number of instructions executed so far is appended to COUNTS. A
 * program brackets what it wants counted with two such calls: os.getppid() from Python.
 *
 * One addition per translated block, made inline: exact as long as the program runs one thread
 * (several would lose additions). qemu's header is not packaged by distributions, so the few
 * functions that are needed are declared here as the documentation of that version gives them.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
typedef struct qemu_info_t qemu_info_t; /* not looked into */
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
void qemu_plugin_register_vcpu_tb_trans_cb(
    qemu_plugin_id_t id, void (*callback)(qemu_plugin_id_t id, struct qemu_plugin_tb *tb));
void qemu_plugin_register_vcpu_tb_exec_inline(
    struct qemu_plugin_tb *tb, enum qemu_plugin_op op, void *counter, uint64_t summand);
void qemu_plugin_register_vcpu_syscall_cb(
    qemu_plugin_id_t id,
    void (*callback)(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, uint64_t, uint64_t,
                     uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));

EXPORT int qemu_plugin_version = 1;

enum { GETPPID = 173 }; /* Linux's number on 64-bit ARM */

static uint64_t executed;
static FILE *counts;

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &executed,
                                             qemu_plugin_tb_n_insns(tb));
}

static void called(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, uint64_t a1, uint64_t a2,
                   uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)vcpu, (void)a1, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7;
    (void)a8;
    if (number == GETPPID) {
        fprintf(counts, "%llu\n", (unsigned long long)executed);
        fflush(counts);
    }
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "counts=", 7))
            counts = fopen(argv[i] + 7, "a");
    if (!counts) {
        fprintf(stderr, "insn_count: give a file that can be written: ...,counts=COUNTS\n");
        return 1; /* qemu ends */
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
