// SPDX-License-Identifier: Apache-2.0

import BackendKit
import GuestKit
import HostUSB
import Logging
import Loopback
import MassStorage
import TestKit

/// What an operator, or a script, writes behind `--device`.
enum SpecificationTarget: FuzzTarget {
    static let name = "specification"

    private enum Word: String, CaseIterable { case one, two }

    static func run(_ input: inout FuzzInput) throws {
        let text = String(decoding: input.rest(), as: UTF8.self)
        if let specification = try? DeviceSpecification(parsing: text) {
            try require(specification.text == text, "the words are not the operator's")
            try check(specification)
            ask(specification)
        }
        let catalog = BackendCatalog(StorageBackend.self, HostBackend.self, LoopbackBackend.self)
        do {
            let (backend, resolved) = try catalog.resolve(text)
            try check(resolved)
            // The one backend that opens nothing, as long as it is not told to.
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
                !error.reason.isEmpty, "a refusal without a reason: \(text.debugDescription)")
        }
    }

    /// Written anew it says the same.
    private static func check(_ specification: DeviceSpecification) throws {
        let parameters = specification.parameters
        var parts: [String] = []
        for (name, value) in parameters {
            try require(!name.isEmpty, "a parameter without a name")
            try require(parameters.count { $0.name == name } == 1, "'\(name)' is there twice")
            parts.append(
                (value.map { "\(name)=\($0)" } ?? name)
                    .split(separator: ",", omittingEmptySubsequences: false)
                    .joined(separator: ",,"))
        }
        let text = specification.scheme + (parts.isEmpty ? "" : ":" + parts.joined(separator: ","))
        guard let again = try? DeviceSpecification(parsing: text) else {
            throw Violation("refused when written anew: \(text.debugDescription)")
        }
        let isSame =
            again.scheme == specification.scheme
            && again.parameters.elementsEqual(parameters) {
                $0.name == $1.name && $0.value == $1.value
            }
        try require(isSame, "not the same when written anew: \(text.debugDescription)")
    }

    /// Every question that a backend may ask has an answer or is refused.
    private static func ask(_ specification: DeviceSpecification) {
        for (name, _) in specification.parameters {
            _ = try? specification.value(of: name)
            _ = try? specification.flag(name)
            _ = try? specification.number(name, in: 0...UInt8.max)
            _ = try? specification.number(name, in: Int64.min...Int64.max)
            _ = try? specification.choice(name, of: Word.self)
        }
    }
}
