// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
public import Testing

/// The test bed that `scripts/bed/prepare` makes: a userland tree, kernels and a VMM.
///
/// The process holds a shared lock on it, so that it is not changed under a running guest.
public struct Bed: Sendable {
    let path: String
    /// `kvm` or `tcg`: the accelerator that has booted a guest on this machine.
    let accelerator: String

    /// The bed, or the reason why it is absent.
    public static let current: Result<Bed, VMError> = find()

    /// Whether this machine can run tests in virtual machines.
    public static var isReady: Bool { (try? current.get()) != nil }

    /// The reason why this machine cannot run them.
    public static var absence: Comment {
        if case .failure(let error) = current { return Comment(rawValue: error.description) }
        return "the bed is ready"
    }

    /// Whether guests on this machine can run guests of their own, which tests of passthrough need.
    public static var nests: Bool { nestingProblem == nil }

    /// The reason why guests cannot run guests.
    public static var nestingAbsence: Comment {
        Comment(rawValue: nestingProblem ?? "guests can have guests")
    }

    /// The reason as text; `nil` if there is none.
    public static let nestingProblem: String? = {
        guard let bed = try? current.get() else { return nil }
        // The emulated CPU has virtualization; KVM offers it to guests only if a parameter says so.
        guard bed.accelerator == "kvm" else { return nil }
        let switches = ["kvm_intel", "kvm_amd"].map { "/sys/module/\($0)/parameters/nested" }
        let values = switches.compactMap { try? String(contentsOfFile: $0, encoding: .utf8) }
        if values.contains(where: { $0.hasPrefix("Y") || $0.hasPrefix("1") }) { return nil }
        let problem =
            "this machine's KVM gives guests no KVM: \(switches.joined(separator: " or ")) is not Y"
        FileHandle.standardError.write(
            Data("\n*** TESTS OF HOST DEVICES ARE SKIPPED: \(problem) ***\n\n".utf8))
        return problem
    }()

    /// Whether guests run on the machine's processor and not on an emulated one.
    public static var hasKVM: Bool { (try? current.get())?.accelerator == "kvm" }

    var qemu: String { "\(path)/qemu" }
    var tree: String { "\(path)/tree" }

    private static func find() -> Result<Bed, VMError> {
        let result = Result { () throws(VMError) in try open() }
        if case .failure(let error) = result {
            FileHandle.standardError.write(
                Data("\n*** VM TESTS ARE SKIPPED: \(error) ***\n\n".utf8))
        }
        return result
    }

    private static func open() throws(VMError) -> Bed {
        let script = URL(filePath: #filePath)
            .deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent().deletingLastPathComponent()
            .appending(path: "scripts/bed/prepare").path
        // Tests also run inside guests, which have no scripts and need no bed.
        guard FileManager.default.isExecutableFile(atPath: script) else {
            throw VMError("this machine has no \(script)")
        }
        guard let path = try? CompletedProgram.firstLine(of: script, "--check"), !path.isEmpty
        else {
            throw VMError("the test bed is not prepared; run scripts/bed/prepare")
        }
        let lock = Glibc.open("\(path)/lock", O_RDWR | O_CREAT | O_CLOEXEC, 0o644)
        guard lock >= 0, flock(lock, LOCK_SH) == 0 else {
            throw VMError("cannot lock \(path)/lock: \(String(cString: strerror(errno)))")
        }
        guard
            let accelerator = try? String(contentsOfFile: "\(path)/accel", encoding: .utf8)
        else { throw VMError("\(path)/accel is missing; remove \(path) and prepare it again") }
        return Bed(
            path: path,
            accelerator: accelerator.trimmingCharacters(in: .whitespacesAndNewlines))
    }
}

/// A guest's kernel: that of the Debian release, or the newest one backported to it.
public enum Kernel: String, CaseIterable, Sendable, CustomTestStringConvertible {
    case stable
    case newest

    /// The version, for test results.
    public var testDescription: String {
        guard let bed = try? Bed.current.get(),
            let version = try? String(
                contentsOfFile: "\(bed.tree)/boot/\(rawValue)/version", encoding: .utf8)
        else { return rawValue }
        return "Linux \(version.trimmingCharacters(in: .whitespacesAndNewlines))"
    }
}
