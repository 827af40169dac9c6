// swift-tools-version: 6.2
// SPDX-License-Identifier: Apache-2.0
//
// The manifest is the architecture: each line names a layer and all that it may import.
// CI builds with `--explicit-target-dependency-import-check error`, which holds it to that.

import PackageDescription

let package = Package(
    name: "usbvfiod",
    products: [
        .executable(name: "usbvfiod", targets: ["usbvfiod"])
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.5.0"),
        .package(url: "https://github.com/apple/swift-collections", from: "1.1.0"),
        .package(url: "https://github.com/apple/swift-log", from: "1.6.0"),
        .package(url: "https://github.com/apple/swift-system", from: "1.4.0"),
    ],
    targets: [
        // The framework, from the operating system upwards.
        .target(name: "CLinux", path: "Sources/Framework/CLinux"),
        .framework("Platform", ["CLinux", .system]),
        .framework("DMA", ["Platform", .system]),
        .framework("USB", []),
        .framework("PCI", []),
        .framework("VFIOUser", ["Platform", .system, .logging]),
        .framework("XHCI", ["DMA", "USB", .collections, .logging]),
        .framework("BackendKit", ["Platform", "USB", .logging]),
        .framework(
            "Service",
            ["Platform", "DMA", "USB", "PCI", "VFIOUser", "XHCI", "BackendKit", .system, .logging]),

        // The backends: each sees USB, BackendKit and Platform, never the controller.
        .backend("MassStorage", [.collections, .system]),
        .backend("HostUSB", ["CLibUSB"]),
        .backend("Loopback", [.system]),
        .systemLibrary(
            name: "CLibUSB", path: "Sources/Backends/CLibUSB", pkgConfig: "libusb-1.0",
            providers: [.apt(["libusb-1.0-0-dev"])]),

        // The program.
        .executableTarget(
            name: "usbvfiod",
            dependencies: [
                "Platform", "BackendKit", "Service", "MassStorage", "HostUSB", "Loopback",
                .argumentParser, .logging, .system,
            ],
            path: "Sources/usbvfiod", swiftSettings: .strict),

        // What tests are written with: pipes, folders and logs, a guest's driver, a VMM's half of the
        // socket, real VMs, and the device that docs/writing-a-backend.md explains.
        .support("TestKit", ["Platform", .system, .logging]),
        .support(
            "GuestKit",
            ["TestKit", "CLinux", "DMA", "USB", "XHCI", "Platform", .system, .logging]),
        .support("VFIOClient", ["CLinux", "Platform", .system]),
        .support("RemoteGuest", ["GuestKit", "VFIOClient", "DMA", "USB", "Platform", .system]),
        .support("VMKit", ["TestKit", "Platform", .system]),
        .target(
            name: "ExampleBackend", dependencies: ["BackendKit", "USB", "Platform"],
            path: "Tests/ExampleBackend", swiftSettings: .strict),

        // What `make bench` runs; no product asks for it.
        .executableTarget(
            name: "Benchmarks",
            dependencies: [
                "RemoteGuest", "GuestKit", "VFIOClient", "VMKit", "TestKit", "DMA", "USB",
                "Platform",
            ],
            path: "Tests/Benchmarks", swiftSettings: .relaxed),

        // Tests, layer by layer.
        .tests("Platform", ["TestKit", "CLinux", .system]),
        .tests("DMA", ["CLinux", "Platform", .system]),
        .tests("USB", []),
        .tests("PCI", []),
        .tests(
            "VFIOUser", ["TestKit", "VFIOClient", "CLinux", "Platform", .system, .logging]),
        .tests("XHCI", ["TestKit", "GuestKit", "DMA", "USB", "Platform", .system, .logging]),
        .tests("BackendKit", ["TestKit", "USB", "Platform", .logging]),
        .tests(
            "Service",
            [
                "TestKit", "RemoteGuest", "GuestKit", "VFIOClient", "VFIOUser", "DMA", "USB",
                "PCI", "XHCI", "BackendKit", "ExampleBackend", "Platform", .system, .logging,
            ]),
        .tests(
            "MassStorage",
            [
                "TestKit", "GuestKit", "XHCI", "DMA", "USB", "BackendKit", "Platform", .system,
                .logging,
            ]),
        .tests(
            "Loopback",
            ["TestKit", "GuestKit", "DMA", "USB", "BackendKit", "Platform", .system, .logging]),
        .tests(
            "HostUSB",
            ["TestKit", "USB", "BackendKit", "Platform", "CLibUSB", .logging, .system]),
        .tests(
            "ExampleBackend", ["TestKit", "USB", "BackendKit", "GuestKit", "Platform", .logging]),
        .testTarget(
            name: "SimulationTests",
            dependencies: [
                "TestKit", "GuestKit", "XHCI", "DMA", "USB", "Platform", "BackendKit",
                "MassStorage", .logging,
            ],
            path: "Tests/SimulationTests", swiftSettings: .relaxed),
        .testTarget(
            name: "EndToEndTests",
            dependencies: [
                "TestKit", "RemoteGuest", "GuestKit", "VFIOClient", "VMKit", "DMA", "Platform",
                "usbvfiod", "BackendKit", "ExampleBackend", "Service", "USB", .argumentParser,
                .system,
            ],
            path: "Tests/EndToEndTests", swiftSettings: .relaxed),
        .testTarget(
            name: "VMTests", dependencies: ["VMKit", "Platform", "usbvfiod", .system],
            path: "Tests/VMTests", swiftSettings: .relaxed),

        // What a fuzzer runs, and its corpora as tests.
        .target(
            name: "FuzzTargets",
            dependencies: [
                "TestKit", "GuestKit", "VFIOClient", "Service", "VFIOUser", "XHCI", "DMA", "USB",
                "Platform", "BackendKit", "MassStorage", "HostUSB", "Loopback", .system, .logging,
            ],
            path: "Tests/Fuzz/Targets", swiftSettings: .relaxed),
        .testTarget(
            name: "FuzzTests", dependencies: ["FuzzTargets"], path: "Tests/FuzzTests",
            swiftSettings: .relaxed),
    ]
)

// The fuzzer itself takes its `main` from libFuzzer, so only `scripts/fuzz` can link it.
if Context.environment["USBVFIOD_FUZZ"] != nil {
    package.targets.append(
        .executableTarget(
            name: "Fuzz", dependencies: ["FuzzTargets"], path: "Tests/Fuzz/Executable",
            swiftSettings: .relaxed))
}

extension [SwiftSetting] {
    /// Every target: Swift 6, explicit existentials, imports that say what they expose, no warning let
    /// through.
    static var relaxed: Self {
        [
            .swiftLanguageMode(.v6),
            .enableUpcomingFeature("ExistentialAny"),  // SE-0335
            .enableUpcomingFeature("InternalImportsByDefault"),  // SE-0409
            .enableUpcomingFeature("MemberImportVisibility"),  // SE-0444
            .treatAllWarnings(as: .error),  // SE-0480
        ]
    }

    /// Product code: each unsafe expression must also be marked, which makes the word `unsafe` in a
    /// diff the sign to look twice (SE-0458).
    static var strict: Self { relaxed + [.strictMemorySafety()] }
}

extension Target {
    /// A layer of the framework, in `Sources/Framework`.
    static func framework(_ name: String, _ dependencies: [Dependency]) -> Target {
        .target(
            name: name, dependencies: dependencies, path: "Sources/Framework/\(name)",
            swiftSettings: .strict)
    }

    /// A source of USB devices, in `Sources/Backends`.
    static func backend(_ name: String, _ dependencies: [Dependency] = []) -> Target {
        .target(
            name: name, dependencies: ["USB", "BackendKit", "Platform", .logging] + dependencies,
            path: "Sources/Backends/\(name)", swiftSettings: .strict)
    }

    /// A library that only tests use, in `Tests/Support`.
    static func support(_ name: String, _ dependencies: [Dependency]) -> Target {
        .target(
            name: name, dependencies: dependencies, path: "Tests/Support/\(name)",
            swiftSettings: .relaxed)
    }

    /// The tests of the target called `name`.
    static func tests(_ name: String, _ dependencies: [Dependency]) -> Target {
        .testTarget(
            name: "\(name)Tests", dependencies: [.target(name: name)] + dependencies,
            path: "Tests/\(name)Tests", swiftSettings: .relaxed)
    }
}

extension Target.Dependency {
    static var argumentParser: Self {
        .product(name: "ArgumentParser", package: "swift-argument-parser")
    }
    static var collections: Self { .product(name: "DequeModule", package: "swift-collections") }
    static var logging: Self { .product(name: "Logging", package: "swift-log") }
    static var system: Self { .product(name: "SystemPackage", package: "swift-system") }
}
