/* Counts the instructions that a program executes under qemu-user: a TCG plugin of ours.
 *
 *     cc -shared -fPIC -O2 -DPLUGIN_API=1 -o insn_count.so insn_count.c
 *     qemu-aarch64 -plugin ./insn_count.so,counts=COUNTS PROGRAM
 *
 * Each time the program asks for its parent's process id (getppid: libraries have no reason to),
 * one line is appended to COUNTS: the number of instructions executed so far, by all threads. So a
 * program brackets what it wants counted with two such calls, os.getppid() from Python.
 *
 * PLUGIN_API is 1 for qemu before 9 and 2 from 9 on. qemu's header is not packaged by
 * distributions; the few functions needed are declared here, and are the same in both.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
struct qemu_info;
struct qemu_plugin_tb;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };

typedef void (*translate_callback)(qemu_plugin_id_t id, struct qemu_plugin_tb *block);
typedef void (*execute_callback)(unsigned int vcpu, void *data);
typedef void (*syscall_callback)(qemu_plugin_id_t id, unsigned int vcpu, int64_t number,
                                 uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5,
                                 uint64_t a6, uint64_t a7, uint64_t a8);

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, translate_callback callback);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, execute_callback callback,
                                          enum qemu_plugin_cb_flags flags, void *data);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t id, syscall_callback callback);

EXPORT int qemu_plugin_version = PLUGIN_API;

enum { GETPPID = 173 }; /* Linux's number on 64-bit ARM */

static uint64_t executed;
static FILE *counts;

static void run(unsigned int vcpu, void *instructions)
{
    (void)vcpu;
    __atomic_fetch_add(&executed, (uint64_t)(uintptr_t)instructions, __ATOMIC_RELAXED);
}

/* A block is translated once and then runs from its first to its last instruction. */
static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(block, run, QEMU_PLUGIN_CB_NO_REGS,
                                         (void *)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

static void called(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, uint64_t a1, uint64_t a2,
                   uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)vcpu, (void)a1, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7;
    (void)a8;
    if (number != GETPPID)
        return;
    fprintf(counts, "%llu\n", (unsigned long long)__atomic_load_n(&executed, __ATOMIC_RELAXED));
    fflush(counts);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int argc,
                               char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "counts=", 7))
            counts = fopen(argv[i] + 7, "a");
    if (!counts) {
        fprintf(stderr, "insn_count: give a file that can be written: ...,counts=COUNTS\n");
        return 1; /* qemu stops */
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
