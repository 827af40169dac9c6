// SPDX-License-Identifier: Apache-2.0

/// A part of the program that the fuzzer runs with arbitrary bytes.
///
/// A target reads its input as a sequence of steps, so that a small change of the bytes is a small
/// change of the run. At its end it checks the invariants of the part, since a crash is not the
/// only kind of failure. A run is deterministic: the same bytes have the same effect each time.
public protocol FuzzTarget {
    /// The name of its corpus and on the command line.
    static var name: String { get }

    /// Runs the steps of the input.
    ///
    /// - Throws: ``Violation`` when an invariant does not hold.
    static func run(_ input: inout FuzzInput) throws
}

/// An invariant that does not hold after an input.
public struct Violation: Error, CustomStringConvertible {
    public let description: String

    public init(_ description: String) { self.description = description }
}

/// Throws a ``Violation`` unless the condition holds.
func require(_ condition: Bool, _ message: @autoclosure () -> String) throws(Violation) {
    if !condition { throw Violation(message()) }
}

/// The list of all targets, in the order in which they run.
public enum FuzzTargets {
    public static var all: [any FuzzTarget.Type] {
        [
            SessionTarget.self, ControllerTarget.self, StorageTarget.self, HostTarget.self,
            SpecificationTarget.self, ControlTarget.self,
        ]
    }

    public static func named(_ name: String) -> (any FuzzTarget.Type)? {
        all.first { $0.name == name }
    }
}
