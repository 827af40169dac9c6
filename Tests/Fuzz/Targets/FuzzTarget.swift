// SPDX-License-Identifier: Apache-2.0

/// A part of the program that is given bytes which nobody has thought of.
///
/// A target reads its input as a sequence of steps, so that a small change of the bytes is a small
/// change of what happens, and ends by asking whether what must always hold still does: a crash is
/// not the only thing that can go wrong. The same bytes do the same thing each time.
public protocol FuzzTarget {
    /// The name of its corpus and on the command line.
    static var name: String { get }

    /// Does what the input says.
    ///
    /// - Throws: ``Violation`` when something does not hold that should.
    static func run(_ input: inout FuzzInput) throws
}

/// What an input has brought about and must not.
public struct Violation: Error, CustomStringConvertible {
    public let description: String

    public init(_ description: String) { self.description = description }
}

/// Throws unless a promise holds.
func require(_ holds: Bool, _ promise: @autoclosure () -> String) throws(Violation) {
    if !holds { throw Violation(promise()) }
}

/// All targets, in the order in which they are run.
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
