// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestKit

/// A program that has run to its end.
public struct CompletedProgram: Sendable {
    /// The exit status, or the negated signal that ended it.
    public let status: Int32
    public let output: String
    public let errors: String

    /// Runs a program.
    ///
    /// - Parameters:
    ///   - arguments: the program and its arguments.
    ///   - environment: variables beside those of the test.
    ///   - folder: the program's working directory; the test's own if `nil`.
    public init(
        _ arguments: [String], environment: [String: String] = [:], folder: String? = nil,
        within limit: Duration = .seconds(120)
    ) throws {
        let scratch = try TemporaryFolder()
        let process = try ChildProcess(
            arguments, environment: environment, folder: folder, errors: scratch.file("errors"))
        status = try process.waitForExit(within: limit)
        output = process.output
        errors = try String(contentsOfFile: scratch.file("errors"), encoding: .utf8)
    }

    /// Runs a program that must succeed.
    ///
    /// - Returns: the first line of its output.
    @discardableResult
    public static func firstLine(of arguments: String...) throws -> String {
        let program = try CompletedProgram(arguments)
        guard program.status == 0 else {
            throw VMError(
                "\(arguments[0]) failed with status \(program.status)", detail: program.errors)
        }
        return program.output.split(separator: "\n").first.map(String.init) ?? ""
    }
}
