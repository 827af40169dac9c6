// SPDX-License-Identifier: Apache-2.0

import BackendKit
import GuestKit
import HostUSB
import Logging
import Loopback
import MassStorage
import TestKit

/// The parser of `--device` arguments, and the catalog that resolves them.
enum SpecificationTarget: FuzzTarget {
    static let name = "specification"

    private enum Word: String, CaseIterable { case one, two }

    static func run(_ input: inout FuzzInput) throws {
        let text = String(decoding: input.rest(), as: UTF8.self)
        if let specification = try? DeviceSpecification(parsing: text) {
            try require(specification.text == text, "the text is not the argument")
            try check(specification)
            readValues(of: specification)
        }
        let catalog = BackendCatalog(StorageBackend.self, HostBackend.self, LoopbackBackend.self)
        do {
            let (backend, resolved) = try catalog.resolve(text)
            try check(resolved)
            // Loopback is the one backend that opens no file, unless 'faults' names one.
            guard backend == LoopbackBackend.self, try resolved.value(of: "faults") == nil else {
                return
            }
            _ = try LoopbackBackend(
                resolved,
                context: BackendContext(
                    loop: SimulatedLoop(),
                    logger: .silent))
        } catch let error as BackendError {
            try require(
                !error.reason.isEmpty, "an error without a reason: \(text.debugDescription)")
        }
    }

    /// Checks that the specification is equal to itself after formatting and parsing.
    private static func check(_ specification: DeviceSpecification) throws {
        let parameters = specification.parameters
        var parts: [String] = []
        for (name, value) in parameters {
            try require(!name.isEmpty, "a parameter has no name")
            try require(
                parameters.count { $0.name == name } == 1, "the parameter '\(name)' is there twice")
            parts.append(
                (value.map { "\(name)=\($0)" } ?? name)
                    .split(separator: ",", omittingEmptySubsequences: false)
                    .joined(separator: ",,"))
        }
        let text = specification.scheme + (parts.isEmpty ? "" : ":" + parts.joined(separator: ","))
        guard let again = try? DeviceSpecification(parsing: text) else {
            throw Violation("the formatted text cannot be parsed: \(text.debugDescription)")
        }
        let isSame =
            again.scheme == specification.scheme
            && again.parameters.elementsEqual(parameters) {
                $0.name == $1.name && $0.value == $1.value
            }
        try require(isSame, "the formatted text has another meaning: \(text.debugDescription)")
    }

    /// Reads each parameter as each type that a backend may read; an error is a valid result.
    private static func readValues(of specification: DeviceSpecification) {
        for (name, _) in specification.parameters {
            _ = try? specification.value(of: name)
            _ = try? specification.flag(name)
            _ = try? specification.number(name, in: 0...UInt8.max)
            _ = try? specification.number(name, in: Int64.min...Int64.max)
            _ = try? specification.choice(name, of: Word.self)
        }
    }
}
