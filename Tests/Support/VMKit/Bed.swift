// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
public import Testing

/// The prepared test bed: a userland tree, kernels and a VMM, as `scripts/bed/prepare` leaves them.
///
/// Whoever uses it holds its lock shared, so that nobody changes it under a running guest.
public struct Bed: Sendable {
    let path: String
    /// `kvm` or `tcg`: what was seen to boot a guest on this machine.
    let accelerator: String

    /// The bed, or why this machine has none.
    public static let current: Result<Bed, VMError> = find()

    /// Whether tests that need virtual machines can run here.
    public static var isReady: Bool { (try? current.get()) != nil }

    /// Why they cannot.
    public static var absence: Comment {
        if case .failure(let error) = current { return Comment(rawValue: error.description) }
        return "the bed is ready"
    }

    /// Whether guests can have guests of their own here, in which devices of a host are tested.
    public static var nests: Bool { nestingProblem == nil }

    /// Why they cannot.
    public static var nestingAbsence: Comment {
        Comment(rawValue: nestingProblem ?? "guests can have guests")
    }

    /// The same as a text, which is absent where they can.
    public static let nestingProblem: String? = {
        guard let bed = try? current.get() else { return nil }
        // The software CPU virtualises by itself; a real one does so for guests if it is told to.
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

    /// Whether guests run on the machine's processor; otherwise on one made of software.
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
        // Tests also run inside guests, which have no scripts and should not look for a bed.
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

/// A guest's kernel: what a Debian release ships, and the newest that has been brought to it.
public enum Kernel: String, CaseIterable, Sendable, CustomTestStringConvertible {
    case stable
    case newest

    /// The version, which is what a reader of test results wants to know.
    public var testDescription: String {
        guard let bed = try? Bed.current.get(),
            let version = try? String(
                contentsOfFile: "\(bed.tree)/boot/\(rawValue)/version", encoding: .utf8)
        else { return rawValue }
        return "Linux \(version.trimmingCharacters(in: .whitespacesAndNewlines))"
    }
}
